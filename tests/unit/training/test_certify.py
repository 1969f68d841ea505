"""Certificates of sound variants: they pass, with every number that a reader needs. Faults are in test_planted_faults."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from registry.bundle import CERTIFICATE
from registry.certificate import Certificate
from support.planted import every_variant, failed, subject
from training.export import stage
from training.export.catalog import EXPORTERS
from training.export.certificate.certify import NUM_GOLDEN
from training.export.onnx_graph import fp32_graph
from training.export.runners import open_variant
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.torchscript_fp32 import TorchScriptFp32
from training.source.trained import TrainedSource

EVERY = pytest.mark.parametrize("exporter", every_variant())
FP32 = pytest.mark.parametrize("exporter", [OnnxFp32(), TorchScriptFp32()], ids=lambda e: e.name)


@EVERY
def test_a_sound_variant_passes_with_numbers(exporter, certificate_of, measured, tmp_path):
    certificate = certificate_of(exporter)
    assert certificate.passed, certificate.failures
    facts = certificate.facts
    for size in (1, 8, 32):
        latency = facts["latency"][f"batch_{size}"]
        assert 0 < latency["p50_ms"] <= latency["p99_ms"]
        assert latency["rows_per_s"] == pytest.approx(size * 1000 / latency["p50_ms"], rel=0.01)
    assert facts["quality"] == "accuracy"
    assert facts["accuracy"]["eager"] > 0.85
    low, high = facts["accuracy"]["interval"]
    assert low <= facts["accuracy"]["change"] <= high
    assert facts["labels"] == "360 rows"
    assert set(facts["parity"]) == {"batch_1", "batch_2", "batch_7", "batch_32", "held_out"}
    assert facts["parity"]["held_out"]["logits"]["mean_cosine"] > 0.99
    assert facts["parity"]["held_out"]["logits"]["argmax_agreement"] >= exporter.limits.min_agreement
    assert facts["size_bytes"] == sum(p.stat().st_size for p in (tmp_path / "variant").glob("model.*"))
    assert facts["size_ratio"] == pytest.approx(facts["size_bytes"] / facts["fp32_weights_bytes"], abs=1e-4)
    assert facts["inputs"] == {"image": "FP32[-1, 1, 8, 8]"}
    assert {"torch", "onnx", "onnxruntime", "numpy", "modelway"} <= set(facts["libraries"])
    assert facts["tolerance"]["logits"]["atol"] > 0
    stored = Certificate.from_json(json.loads((tmp_path / "variant" / CERTIFICATE).read_text()))
    assert stored == certificate


@EVERY
def test_the_golden_rows_are_met_within_a_bounded_tolerance(exporter, measured, measured_of, tmp_path):
    reference, _ = measured
    result = measured_of(exporter)
    tolerance = result.tolerance["logits"]
    golden = slice(0, NUM_GOLDEN)
    answer = open_variant(tmp_path / "variant", reference.signature).run(reference.rows.take(golden))["logits"]
    np.testing.assert_allclose(answer, reference.outputs["logits"][golden], **tolerance)
    np.testing.assert_array_equal(answer, result.outputs["logits"][golden])
    assert 0 < tolerance["atol"] <= exporter.limits.max_error * reference.peak("logits")


def test_operators_are_counted_before_and_after(certificate_of):
    (int8,) = (exporter for exporter in EXPORTERS if exporter.name == "onnx-int8-static")
    facts = certificate_of(int8).facts
    assert facts["operators_fp32"]["Conv"] == 2
    assert "QuantizeLinear" not in facts["operators_fp32"]
    assert facts["operators"]["QuantizeLinear"] > 0
    assert facts["placement"]["CPUExecutionProvider"]["QuantizeLinear"] > 0
    assert facts["size_ratio"] < 0.5
    assert list(facts["layer_errors"]) == ["relu", "relu_1", "relu_2", "logits"]
    assert all(0 < error < int8.limits.mean_error for error in facts["layer_errors"].values())


def test_torchscript_says_where_its_operators_run(certificate_of):
    placement = certificate_of(TorchScriptFp32()).facts["placement"]
    assert list(placement) == ["cpu"]
    assert sum(count for operator, count in placement["cpu"].items() if "convolution" in operator or "conv2d" in operator) == 2


@pytest.mark.usefixtures("short_latency")
def test_without_labels_quality_is_agreement_and_the_certificate_says_so(certificate_of, measured):
    reference, _ = measured
    own = dataclasses.replace(reference.rows, target=reference.outputs["logits"].argmax(-1))
    certificate = certificate_of(OnnxFp32(), reference=dataclasses.replace(reference, rows=own, labelled=False))
    assert certificate.passed
    names = {check.name for check in certificate.checks}
    assert "agreement_drop" in names
    assert "accuracy_drop" not in names
    assert certificate.facts["quality"] == "agreement"
    assert certificate.facts["agreement"]["eager"] == 1.0
    assert certificate.facts["labels"].startswith("none")


@pytest.mark.usefixtures("short_latency")
@pytest.mark.parametrize(("goal_ms", "passes"), [(10_000.0, True), (1e-6, False)])
def test_a_latency_goal_is_a_check(goal_ms, passes, trained, certificate_of):
    certificate = certificate_of(OnnxFp32(), config=dataclasses.replace(trained.recipe.export, latency_p99_ms=goal_ms))
    assert certificate.passed == passes
    (check,) = (check for check in certificate.checks if check.name == "latency/batch_1/p99_ms")
    assert check.limit == goal_ms
    assert check.value == certificate.facts["latency"]["batch_1"]["p99_ms"]
    assert passes or failed(certificate) == {"latency/batch_1/p99_ms"}


class Pooled(torch.nn.Module):
    """Token ids and their mask [n, length] -> a vector, and a value per token."""

    def __init__(self, divide_by: float | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 16)
        self.head = torch.nn.Linear(16, 8)
        self.divide_by = divide_by

    def forward(self, ids, mask):
        tokens = self.embedding(ids) * mask[:, :, None]
        length = mask.sum(dim=1, keepdim=True) if self.divide_by is None else self.divide_by
        return {"vector": self.head(tokens.sum(dim=1) / length), "tokens": tokens.sum(dim=2)}


def texts(num_rows=40, length=16):
    rng = np.random.default_rng(0)
    mask = np.ones((num_rows, length), np.float32)
    return {"ids": rng.integers(0, 50, size=(num_rows, length)), "mask": mask}


BOTH_FREE = {"ids": (1,), "mask": (1,)}


@pytest.mark.usefixtures("short_latency")
@FP32
def test_other_lengths_are_asked_of_the_model(exporter, tmp_path):
    sound = subject(Pooled().eval(), texts(), tmp_path / "scratch", dynamic=BOTH_FREE)
    certificate = sound.measured(exporter, tmp_path / "variant").certificate
    assert certificate.passed, certificate.failures
    assert {"length/8/max_relative_error", "length/4/max_relative_error"} <= {check.name for check in certificate.checks}
    assert set(certificate.facts["parity_at_length"]["8"]) == {"vector", "tokens"}


@pytest.mark.usefixtures("short_latency")
def test_a_length_that_the_model_refuses_is_a_fact(tmp_path):
    class AtLeastEight(Pooled):
        def forward(self, ids, mask):
            if not torch.jit.is_tracing() and ids.shape[1] < 8:
                raise ValueError("too short")
            return super().forward(ids, mask)

    sound = subject(AtLeastEight().eval(), texts(), tmp_path / "scratch", dynamic=BOTH_FREE)
    certificate = sound.measured(TorchScriptFp32(), tmp_path / "variant").certificate
    assert certificate.passed, certificate.failures
    assert certificate.facts["parity_at_length"]["4"].startswith("the model itself refuses")


@pytest.mark.usefixtures("short_latency")
@pytest.mark.parametrize("ask", [None, "refuses"])
def test_a_free_dimension_that_cannot_be_checked_fails(ask, tmp_path):
    def refuses(inputs):
        raise ValueError("another length than 16")

    sound = subject(Pooled().eval(), texts(), tmp_path / "scratch", dynamic=BOTH_FREE)
    blind = dataclasses.replace(sound, reference=dataclasses.replace(sound.reference, ask=refuses if ask else None))
    assert failed(blind.measured(OnnxFp32(), tmp_path / "variant").certificate) == {"length/asked"}


@pytest.mark.usefixtures("short_latency")
def test_nan_that_the_model_itself_answers_fails(trained, measured_of, tmp_path):
    broken = TrainedSource(
        model=copy.deepcopy(trained.model), recipe=trained.recipe, weights_sha256="0" * 64, data_sha256=trained.data_sha256
    )
    with torch.no_grad():
        broken.model.classifier[4].bias[3] = float("nan")
    (tmp_path / "scratch").mkdir()
    reference, context = stage.measure_eager(broken, broken.recipe.export, scratch=tmp_path / "scratch")
    result = measured_of(OnnxFp32(), source=broken, reference=reference, context=context)
    assert "finite/logits/num_not_finite_eager" in failed(result.certificate)
    assert result.tolerance["logits"]["atol"] == 0.0


def test_an_exporter_that_raises_gives_a_failing_certificate_that_says_so(measured_of):
    class Raises(OnnxFp32):
        def export(self, model, context, into):
            raise RuntimeError("operator grid_sampler_5d is not supported")

    result = measured_of(Raises())
    assert result.certificate.failures == ("export 0 != 1 (RuntimeError: operator grid_sampler_5d is not supported)",)
    assert not result.outputs


def test_an_exporter_that_writes_nothing_fails(certificate_of):
    class WritesNothing(OnnxFp32):
        def export(self, model, context, into):
            pass

        def inspect(self, directory, model, context):
            return super().inspect(fp32_graph(model, context).parent, model, context)

    assert failed(certificate_of(WritesNothing())) == {"loads"}
