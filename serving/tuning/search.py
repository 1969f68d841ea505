"""The search of a tuning, as pure functions of measurements: what to try, who goes on, what is best.

Successive halving (Jamieson and Talwalkar, https://arxiv.org/abs/1502.07943): every round has the same time, measures what
is left, and keeps the better half, so that the last ones are measured longest. With 12 layouts and 90 s to measure:

    round 1    12 layouts, 2.5 s each
    round 2     6 layouts, 5 s each
    round 3     3 layouts, 10 s each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, inf

from registry.errors import UsageError
from registry.tuning import WorkerLayout

BATCH_SIZES = (1, 4, 16, 64)
_NUM_FINALISTS = 3
_MIN_SECONDS = 1.0
_RATE_KEPT = 0.95
_SIMILAR = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What a layout has to hold.

    Attributes:
        limit_p99_ms: Largest 99th percentile of latency, in milliseconds.
        rate_per_s: Requests per second that must be kept up with; None if the load takes what it gets.
    """

    limit_p99_ms: float
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.limit_p99_ms < inf or (self.rate_per_s is not None and not 0 < self.rate_per_s < inf):
            raise UsageError(f"limit and rate must be above 0 (p99 {self.limit_p99_ms} ms, rate {self.rate_per_s})")

    def holds(self, measured: Measured) -> bool:
        """Whether the layout does, without one failed request."""
        keeps_up = self.rate_per_s is None or measured.requests_per_s >= _RATE_KEPT * self.rate_per_s
        return not measured.problem and keeps_up and measured.p99_ms <= self.limit_p99_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One layout under load.

    Attributes:
        seconds: How long it was measured.
        problem: The first failure; empty if there was none. What failed never holds a goal.
    """

    layout: WorkerLayout
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    seconds: float
    problem: str = ""

    @classmethod
    def failed(cls, layout: WorkerLayout, problem: str) -> Measured:
        """A layout that could not be measured."""
        return cls(layout=layout, requests_per_s=0.0, p50_ms=inf, p99_ms=inf, seconds=0.0, problem=problem)


@dataclass(frozen=True, slots=True)
class Round:
    """So many layouts are measured, for so many seconds each."""

    num_layouts: int
    seconds: float


def grid(num_cores: int, *, max_workers: int | None = None, max_batch: int = BATCH_SIZES[-1]) -> tuple[WorkerLayout, ...]:
    """The layouts to try: powers of two that do not ask for more cores than there are.

    Args:
        max_workers: Most workers; by default one per core. More than cores are tried where it says so, with one thread each.
        max_batch: Rows that one run may have.

    >>> [(layout.num_workers, layout.num_threads) for layout in grid(4, max_batch=1)]
    [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)]
    """
    workers = _up_to(max_workers or num_cores)
    threads = _up_to(num_cores)
    batches = [size for size in BATCH_SIZES if size <= max_batch]
    return tuple(
        WorkerLayout(num_workers=w, num_threads=t, batch_size=b)
        for w, t, b in product(workers, threads, batches)
        if w * t <= num_cores or t == 1
    )


def _up_to(most: int) -> list[int]:
    """Powers of two below `most`, and `most`."""
    return [*(1 << n for n in range(most.bit_length()) if 1 << n < most), most]


def rounds(num_layouts: int, budget_s: float, start_s: float) -> tuple[Round, ...]:
    """How the budget is spent.

    Args:
        start_s: Seconds that it takes to start the workers of a layout; not spent on measuring.

    Raises:
        UsageError: There would be less than a second for each layout.
    """
    sizes = [num_layouts]
    while sizes[-1] > _NUM_FINALISTS:
        sizes.append(ceil(sizes[-1] / 2))
    round_s = (budget_s - start_s * sum(sizes)) / len(sizes)
    if round_s < _MIN_SECONDS * num_layouts:
        needed = ceil(_MIN_SECONDS * num_layouts * len(sizes) + start_s * sum(sizes))
        raise UsageError(
            f"a budget of {budget_s:g} s is too short for {num_layouts} layouts",
            f"Give --budget-s {needed} or more, or try fewer with --max-workers.",
        )
    return tuple(Round(size, round_s / size) for size in sizes)


def ranked(measured: Sequence[Measured], goal: Goal) -> list[Measured]:
    """Best first: those that hold the goal by throughput, then the others by how near they are to it."""
    return sorted(measured, key=lambda m: (not goal.holds(m), -m.requests_per_s if goal.holds(m) else m.p99_ms, m.layout))


def survivors(measured: Sequence[Measured], goal: Goal, number: int) -> list[WorkerLayout]:
    """The layouts of the next round: half of them the fastest that hold the goal, the others those that promise most.

    A short measurement's p99 is uncertain, so one above the limit is no end yet: it lowers what a layout promises in proportion.

        5,000 requests/s, p99 18 ms of 20    promises 5,000
        7,400 requests/s, p99 25 ms of 20    promises 5,920
    """

    def promise(m: Measured) -> float:
        return 0.0 if m.problem else m.requests_per_s * min(1.0, goal.limit_p99_ms / m.p99_ms)

    kept = [m for m in ranked(measured, goal)[: ceil(number / 2)] if goal.holds(m)]
    others = sorted((m for m in measured if m not in kept), key=lambda m: (-promise(m), m.layout))
    return [m.layout for m in (*kept, *others)[:number]]


def second_chance(latest: Mapping[WorkerLayout, Measured], finalists: Sequence[WorkerLayout], goal: Goal) -> WorkerLayout | None:
    """Whom to measure longer when no finalist holds the goal: the best of those that held it and had to go; None if there is none."""
    if any(goal.holds(latest[layout]) for layout in finalists):
        return None
    rest = [m for layout, m in latest.items() if layout not in finalists and goal.holds(m)]
    return ranked(rest, goal)[0].layout if rest else None


def choose(measured: Sequence[Measured], goal: Goal) -> Measured:
    """The choice: the highest throughput of those that hold the goal; if none does, the nearest.

    Of those within 3% of the highest, which two runs cannot tell apart, the one that needs the fewest cores, then the one
    with the smallest p99.

    Args:
        measured: At least one.
    """
    best = ranked(measured, goal)[0]
    if not goal.holds(best):
        return best
    similar = [m for m in measured if goal.holds(m) and m.requests_per_s >= (1 - _SIMILAR) * best.requests_per_s]
    return min(similar, key=lambda m: (m.layout.num_cores, m.p99_ms, m.layout))
