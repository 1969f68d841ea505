"""Which quantization of a graph to keep: the method of calibration, and the nodes that have to stay in float32.

Candidates are judged on calibration rows that none of them was calibrated on, never on the rows of the certificate. All nodes are
quantized first, with the ranges of each method. Where the best of these does not hold the limits, nodes are left in float32, the one
that does most harm when it alone is quantized first; as few as it takes, found by doubling and halving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from training.data.batches import Array, Rows
from training.evaluate import quality
from training.export.exporter import Limits
from training.recipe import Task

_JUDGE_SHARE = 4  # one row of four
_MAX_ROWS = 2048
_MAX_JUDGES = 512

M = TypeVar("M", bound=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a candidate answered on the judging rows. Errors are fractions of the output's largest absolute value.

    Attributes:
        agreement: Share of rows with the same class; 1 for a regression.
        drop: Quality that was lost.
        mean_error: Mean error of the worst output.
        max_error: Largest error of the worst output.
    """

    agreement: float
    drop: float
    mean_error: float
    max_error: float

    def holds(self, limits: Limits, accuracy_drop: float) -> bool:
        """Whether a certificate with these numbers would pass; a NaN does not."""
        return (
            self.agreement >= limits.min_agreement
            and self.drop <= accuracy_drop
            and self.mean_error <= limits.mean_error
            and self.max_error <= limits.max_error
        )

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better."""
        finite = np.isfinite(self.mean_error)
        return (self.agreement, -self.mean_error) if finite else (-1.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice(Generic[M]):
    """What the search keeps.

    Attributes:
        method: Of calibration.
        excluded: Nodes left in float32, the most sensitive first.
        score: On the judging rows.
        holds: Whether it holds the limits there.
        scores: Method -> score with every node quantized.
    """

    method: M
    excluded: tuple[str, ...]
    score: Score
    holds: bool
    scores: dict[M, Score]


def search(
    methods: Sequence[M],
    trial: Callable[[M, tuple[str, ...]], Score],
    sensitive_first: Callable[[M], Sequence[str]],
    *,
    max_excluded: int,
    limits: Limits,
    accuracy_drop: float,
) -> Choice[M]:
    """Find the method, and the fewest excluded nodes with which it holds; the best that was seen if none does.

    With 30 nodes that may be excluded: 1, 2, 4, 8, 16, 30 nodes until one holds, say 8; then 6, 5 or 7.

    Args:
        methods: To be tried, the preferred first.
        trial: Makes and judges the candidate with a method and excluded nodes.
        sensitive_first: The nodes in the order in which they are to be excluded; asked only when that is needed.
        max_excluded: How many nodes may be.
    """
    scores = {method: trial(method, ()) for method in methods}
    # max keeps the first of equals
    method = max(methods, key=lambda name: (scores[name].holds(limits, accuracy_drop), scores[name].rank))
    tried: dict[int, Score] = {0: scores[method]}
    order: tuple[str, ...] = ()

    def holds(count: int) -> bool:
        if count not in tried:
            tried[count] = trial(method, order[:count])
        return tried[count].holds(limits, accuracy_drop)

    if not holds(0) and max_excluded > 0:
        order = tuple(sensitive_first(method))[:max_excluded]
        low, high = 0, min(1, len(order))
        while not holds(high) and high < len(order):
            low, high = high, min(2 * high, len(order))
        while holds(high) and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
    good = [count for count, score in tried.items() if score.holds(limits, accuracy_drop)]
    count = min(good) if good else max(sorted(tried), key=lambda number: tried[number].rank)
    return Choice(method=method, excluded=order[:count], score=tried[count], holds=bool(good), scores=scores)


def for_few_judges(limits: Limits, *, num_judges: int) -> Limits:
    """Limits for a sample of rows: agreement higher by one standard error, so that a candidate does not hold by luck.

    >>> limits = Limits(max_error=1, mean_error=1, row_error=1, min_agreement=0.95)
    >>> round(for_few_judges(limits, num_judges=32).min_agreement, 3), round(for_few_judges(limits, num_judges=512).min_agreement, 3)
    (0.989, 0.96)
    """
    agreement = limits.min_agreement
    error = (agreement * (1 - agreement) / num_judges) ** 0.5
    return replace(limits, min_agreement=min(agreement + error, 1.0))


def split(rows: Rows) -> tuple[Rows, Rows]:
    """Rows to calibrate on and rows to judge on: every fourth, so that sorted rows are in both. One row is both."""
    numbers = np.arange(min(len(rows), _MAX_ROWS))
    judges = numbers[_JUDGE_SHARE - 1 :: _JUDGE_SHARE][:_MAX_JUDGES]
    others = np.setdiff1d(numbers, judges)
    judges = judges if len(judges) else others
    return _subset(rows, others), _subset(rows, judges)


def score(task: Task, expected: Sequence[Array], found: Sequence[Array], target: Array) -> Score:
    """Compare outputs [n, ...] with those of the float32 graph, in order."""
    means, largest = [], []
    for right, answer in zip(expected, found, strict=True):
        peak = float(np.abs(right).max(initial=0.0)) or 1.0
        errors = np.abs(right.astype(np.float64) - answer.astype(np.float64)) / peak
        means.append(errors.mean())
        largest.append(errors.max(initial=0.0))
    same = (expected[0].argmax(-1) == found[0].argmax(-1)).mean() if task == "classification" else 1.0
    drop = quality(task, expected[0], target) - quality(task, found[0], target)
    return Score(agreement=float(same), drop=float(drop), mean_error=float(np.max(means)), max_error=float(np.max(largest)))


def _subset(rows: Rows, numbers: Array) -> Rows:
    return Rows(inputs=rows.take(numbers), target=rows.target[numbers])
