"""Whether a difference in quality is more than the luck of the held-out rows. Pure functions with a fixed seed.

McNemar's test looks only at the rows on which two classifiers differ: under the hypothesis that neither is better, each such row is a
fair coin. The exact test is conservative; its mid-p form counts the observed outcome half (Fagerland, Lydersen and Laake 2013,
https://doi.org/10.1186/1471-2288-13-91). The interval is the paired percentile bootstrap (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest  # type: ignore[import-untyped]

from training.data.batches import Array
from training.export.certificate.parity import row_chunks
from training.recipe import Task

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 250  # bounds the memory: that many times the number of rows
_SEED = 0

Statistic = Callable[[Array], Array]  # weights [resamples, n] -> [resamples]


@dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """Rows on which two classifiers differ.

    Attributes:
        num_lost: Rows that the first has right and the second wrong.
        num_gained: The other way round.
        p_exact: Two-sided p-value of the exact test.
        p_mid: Its mid-p form.
    """

    num_lost: int
    num_gained: int
    p_exact: float
    p_mid: float


def mcnemar(first_right: Array, second_right: Array) -> McNemar:
    """McNemar's test of two classifiers on the same rows.

    Args:
        first_right: Booleans [n]: whether the first has the row right.
        second_right: The same of the second.
    """
    lost = int(np.count_nonzero(first_right & ~second_right))
    gained = int(np.count_nonzero(~first_right & second_right))
    if lost + gained == 0:
        return McNemar(num_lost=0, num_gained=0, p_exact=1.0, p_mid=1.0)
    p_exact = float(binomtest(lost, lost + gained, 0.5).pvalue)
    # With equal counts all of the distribution is at least as extreme, and the observed outcome is in it once, not twice.
    share = 0.5 if lost == gained else 1.0
    p_mid = p_exact - share * float(binom.pmf(min(lost, gained), lost + gained, 0.5))
    return McNemar(num_lost=lost, num_gained=gained, p_exact=p_exact, p_mid=p_mid)


def interval_of_change(task: Task, eager: Array, variant: Array, target: Array) -> tuple[float, float]:
    """95% interval of the change in quality (variant minus eager), rows resampled in pairs. NaN if an answer is not finite.

    Args:
        eager: First output of the eager model: logits [n, classes], or values of the target's size.
        variant: The same of the variant.
        target: Class numbers [n], or values.
    """
    if task == "classification":
        change = (variant.argmax(-1) == target).astype(np.float64) - (eager.argmax(-1) == target)
        return bootstrap(lambda weights: weights @ change / len(target), len(target))
    return bootstrap(_change_of_r2(eager, variant, target), len(target))


def bootstrap(statistic: Statistic, num_rows: int) -> tuple[float, float]:
    """95% percentile interval of a statistic of rows that are drawn again with replacement.

    Args:
        statistic: Takes how often each row was drawn, float64 [resamples, num_rows]; answers [resamples].
    """
    rng = np.random.default_rng(_SEED)
    values = []
    for _ in range(0, _NUM_RESAMPLES, _RESAMPLES_AT_ONCE):
        drawn = rng.integers(num_rows, size=(_RESAMPLES_AT_ONCE, num_rows))
        offsets = np.arange(_RESAMPLES_AT_ONCE)[:, None] * num_rows
        counts = np.bincount((drawn + offsets).ravel(), minlength=_RESAMPLES_AT_ONCE * num_rows)
        values.append(statistic(counts.reshape(_RESAMPLES_AT_ONCE, num_rows).astype(np.float64)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def _change_of_r2(eager: Array, variant: Array, target: Array) -> Statistic:
    """R2 = 1 - residual / spread (see `training.evaluate.quality`), of which each row has its share.

    The spread of a sample drawn again is taken about the mean of all rows instead of its own, which makes it larger by one part in n:
    so targets may be of any size.
    """
    num_rows = len(target)
    mean = target.mean(axis=0, dtype=np.float64)
    less, spread = np.empty(num_rows), np.empty(num_rows)
    for rows in row_chunks(target):
        values = target[rows].astype(np.float64)
        with np.errstate(invalid="ignore"):
            less[rows] = _squares(eager[rows], values) - _squares(variant[rows], values)
        spread[rows] = _squares(np.broadcast_to(mean, values.shape), values)

    def change(weights: Array) -> Array:
        drawn = weights @ spread
        with np.errstate(invalid="ignore"):
            return np.asarray(weights @ less / np.where(drawn > 0, drawn, np.nan))

    return change


def _squares(output: Array, values: Array) -> Array:
    """Squared distance of each row, [n]."""
    difference = output.astype(np.float64).reshape(values.shape) - values
    return np.asarray(np.square(difference).reshape(len(values), -1).sum(axis=1))
