"""Intervals and tests of paired differences, against scipy and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.evaluate import quality
from training.export.certificate.significance import bootstrap, interval_of_change, mcnemar


def _pair(both: int, lost: int, gained: int, neither: int = 0):
    first = np.array([True] * both + [True] * lost + [False] * gained + [False] * neither)
    second = np.array([True] * both + [False] * lost + [True] * gained + [False] * neither)
    return first, second


# Exact: 2 * P(X <= min) of n fair coins. By hand for 1 of 5: 2 * (1 + 5) / 32; its mid-p takes one P(X = 1) = 5/32 off.
@pytest.mark.parametrize(
    ("lost", "gained", "p_exact", "p_mid"),
    [
        (0, 0, 1.0, 1.0),
        (1, 0, 1.0, 0.5),
        (4, 1, 12 / 32, 7 / 32),
        (10, 3, 756 / 8192, 470 / 8192),
        (2, 2, 1.0, 1 - 0.5 * 6 / 16),
        (0, 6, 2 / 64, 1 / 64),
    ],
)
def test_mcnemar_by_hand(lost, gained, p_exact, p_mid):
    found = mcnemar(*_pair(20, lost, gained, 3))
    assert (found.num_lost, found.num_gained) == (lost, gained)
    assert found.p_exact == pytest.approx(p_exact)
    assert found.p_mid == pytest.approx(p_mid)


def test_mcnemar_is_symmetric_and_ignores_rows_on_which_both_agree():
    first, second = _pair(5, 12, 4)
    more_first, more_second = _pair(500, 12, 4, 70)
    assert mcnemar(first, second).p_mid == mcnemar(second, first).p_mid == mcnemar(more_first, more_second).p_mid


def _logits(classes, num_classes=3):
    return np.eye(num_classes, dtype=np.float32)[classes] * 5


def test_the_interval_of_accuracy_is_scipys_paired_percentile_bootstrap():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 3, 300)
    eager = np.where(rng.random(300) < 0.9, target, (target + 1) % 3)
    variant = np.where(rng.random(300) < 0.93, eager, (eager + 1) % 3)
    low, high = interval_of_change("classification", _logits(eager), _logits(variant), target)

    def change(variant_right, eager_right, axis=-1):
        return variant_right.mean(axis=axis) - eager_right.mean(axis=axis)

    right = ((variant == target).astype(float), (eager == target).astype(float))
    expected = stats.bootstrap(right, change, paired=True, method="percentile", n_resamples=2000, rng=7).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.006)
    assert high == pytest.approx(expected.high, abs=0.006)
    assert low < change(*right) < high


@pytest.mark.parametrize("columns", [(), (2,)], ids=["one value", "two values"])
def test_the_interval_of_r2_is_scipys(columns):
    rng = np.random.default_rng(2)
    target = rng.normal(size=(200, *columns)) * 3 + 10
    eager = target + rng.normal(size=target.shape) * 0.5
    variant = eager + rng.normal(size=target.shape) * 0.3
    low, high = interval_of_change("regression", eager.astype(np.float32), variant.astype(np.float32), target)

    def change(rows):
        return quality("regression", variant[rows], target[rows]) - quality("regression", eager[rows], target[rows])

    rows = np.arange(200)
    expected = stats.bootstrap((rows,), change, vectorized=False, method="percentile", n_resamples=2000, rng=3).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.1 * (expected.high - expected.low))
    assert high == pytest.approx(expected.high, abs=0.1 * (expected.high - expected.low))
    assert low < change(rows) < high


def test_the_interval_covers_what_it_says():
    """Of 200 samples from a population whose mean is known, about 95 in 100 intervals hold it."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        values = rng.normal(size=80)
        low, high = bootstrap(lambda weights, values=values: weights @ values / len(values), len(values))
        held += low <= 0 <= high
    assert 180 <= held <= 199


def test_equal_answers_have_an_interval_of_nothing_and_the_same_values_give_the_same_interval():
    target = np.arange(90) % 3
    same = _logits((target + (np.arange(90) % 7 == 0)) % 3)
    assert interval_of_change("classification", same, same, target) == (0.0, 0.0)
    other = _logits(target)
    assert interval_of_change("classification", same, other, target) == interval_of_change("classification", same, other, target)


@pytest.mark.filterwarnings("error")
def test_an_answer_that_is_not_finite_has_no_interval():
    target = np.arange(50.0)
    broken = np.where(np.arange(50) == 3, np.nan, target)
    assert np.isnan(interval_of_change("regression", target, broken, target)).all()


@pytest.mark.filterwarnings("error")
def test_targets_without_spread_have_no_interval():
    assert np.isnan(interval_of_change("regression", np.ones(40), np.ones(40), np.ones(40))).all()
