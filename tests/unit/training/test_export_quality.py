"""The budget of a variant: what decides in small samples and in large ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from registry.signature import Signature, TensorSpec
from training.data.batches import Rows
from training.export.certificate.quality import quality_checks
from training.export.certificate.reference import Reference

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("logits", "FP32", (-1, 2)),))


def classified(num_rows: int, lost: int, gained: int) -> tuple[Reference, dict[str, np.ndarray]]:
    """A reference with as many wrong rows as the variant gains, and the variant."""
    target = np.zeros(num_rows, np.int64)
    eager, variant = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
    eager[:gained] = 1
    variant[gained : gained + lost] = 1
    reference = Reference(
        signature=SIGNATURE,
        rows=Rows(inputs={"x": np.zeros((num_rows, 1), np.float32)}, target=target),
        outputs={"logits": np.eye(2, dtype=np.float32)[eager]},
        task="classification",
    )
    return reference, {"logits": np.eye(2, dtype=np.float32)[variant]}


@pytest.mark.parametrize(
    ("num_rows", "lost", "gained", "drop_passes", "interval_passes"),
    [
        # The worked examples of the module, budget 0.01.
        (2048, 12, 2, True, True),
        (2048, 60, 45, True, True),
        (2048, 160, 145, True, False),
        (2048, 30, 2, False, True),
        (360, 3, 0, True, None),
        (360, 4, 0, False, None),
        (999, 9, 0, True, None),  # 9.99 rows of budget: too few
        (1000, 9, 0, True, True),
    ],
)
def test_the_drop_decides_and_in_large_samples_its_interval_too(num_rows, lost, gained, drop_passes, interval_passes):
    reference, outputs = classified(num_rows, lost, gained)
    checks, facts = quality_checks(reference, outputs, 0.01)
    passed = {check.name: check.passed for check in checks}
    assert passed.pop("accuracy_drop") == drop_passes
    assert passed == ({} if interval_passes is None else {"accuracy_drop/interval_high": interval_passes})
    numbers = facts["accuracy"]
    assert numbers["change"] == pytest.approx((gained - lost) / num_rows)
    assert numbers["interval_decides"] == (interval_passes is not None)
    assert (numbers["mcnemar"]["lost"], numbers["mcnemar"]["gained"]) == (lost, gained)


def test_a_budget_of_nothing_is_decided_by_the_drop_alone():
    reference, outputs = classified(5000, 1, 1)
    checks, _ = quality_checks(reference, outputs, 0.0)
    assert [(check.name, check.passed) for check in checks] == [("accuracy_drop", True)]


def test_the_limit_of_the_interval_is_twice_the_budget_and_its_value_is_the_drops_upper_end():
    reference, outputs = classified(2048, 160, 145)
    checks, facts = quality_checks(reference, outputs, 0.01)
    assert checks[1].limit == 0.02
    assert checks[1].value == -facts["accuracy"]["interval"][0]
    assert checks[1].value == pytest.approx(15 / 2048 + 1.96 * np.sqrt(305) / 2048, abs=0.002)  # by the normal approximation


def test_regression_has_an_interval_and_no_mcnemar():
    rng = np.random.default_rng(0)
    target = rng.normal(size=64)
    reference = Reference(
        signature=SIGNATURE,
        rows=Rows(inputs={"x": np.zeros((64, 1), np.float32)}, target=target),
        outputs={"prediction": target + rng.normal(size=64) * 0.1},
        task="regression",
    )
    checks, facts = quality_checks(reference, {"prediction": reference.outputs["prediction"] + 0.5}, 0.05)
    assert [check.passed for check in checks] == [False]
    assert facts["quality"] == "r2"
    assert "mcnemar" not in facts["r2"]
    low, high = facts["r2"]["interval"]
    assert low < facts["r2"]["change"] < high < 0


def test_nan_fails_both_checks():
    target = np.arange(2000.0)
    reference = Reference(
        signature=SIGNATURE,
        rows=Rows(inputs={"x": np.zeros((2000, 1), np.float32)}, target=target),
        outputs={"prediction": target},
        task="regression",
    )
    checks, facts = quality_checks(reference, {"prediction": np.where(target == 3, np.nan, target)}, 0.01)
    assert [check.passed for check in checks] == [False, False]
    assert facts["r2"]["variant"] is None


def test_agreement_is_what_it_is_called_without_labels():
    reference, outputs = classified(100, 1, 0)
    checks, facts = quality_checks(dataclasses.replace(reference, labelled=False), outputs, 0.02)
    assert [check.name for check in checks] == ["agreement_drop"]
    assert facts["labels"].startswith("none")
    assert facts["agreement"]["variant"] == 0.99
