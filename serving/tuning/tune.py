"""The story of a tuning: unpack the archive, measure the grid by halves, choose."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import Unavailable, UsageError
from registry.tuning import WorkerLayout
from serving.archive import ArchiveContents, open_archive
from serving.archive_forms import unpack_archive
from serving.golden import PROBE_HEADERS
from serving.tuning.load import Load, run_load
from serving.tuning.search import Goal, Measured, choose, grid, rounds, second_chance, survivors
from serving.tuning.workers import Workers

_WARMUP = 0.2  # of the time that is measured
_MIN_WARMUP_S = 0.3

Measure = Callable[[WorkerLayout, float], Measured]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions:
    """What to search, under which load, for how long.

    Attributes:
        num_cores: Cores that may be used.
        connections: Connections that keep asking; in an open loop the most requests under way.
        max_workers: Most workers to try; None is one per core.
        budget_s: Seconds for everything.
    """

    goal: Goal
    num_cores: int
    connections: int = 32
    max_workers: int | None = None
    budget_s: float = 120.0

    def __post_init__(self) -> None:
        if self.connections < 1 or self.num_cores < 1 or (self.max_workers is not None and self.max_workers < 1):
            raise UsageError(f"connections, cores and workers must be 1 or more ({self.connections}, {self.num_cores}, {self.max_workers})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What the search found.

    Attributes:
        choice: The best, or, if nothing holds the goal, the nearest.
        measured: The longest measurement of each layout, the last ones first.
    """

    choice: Measured
    holds: bool
    measured: Sequence[Measured] = field(default_factory=tuple)


def tune(archive: Path, options: TuneOptions, progress: Callable[[str], None]) -> Tuned:
    """Measure the archive's workers on this machine and choose how many, with how many threads and which batch limit.

    Raises:
        UsageError: The budget is too short.
        Unavailable: No layout could be measured at all; says why.
        Corrupt: The archive is not what its manifest says.
    """
    contents = open_archive(archive)
    with tempfile.TemporaryDirectory(prefix="modelway-tune-") as scratch:
        root = Path(scratch) / "archive"
        unpack_archive(archive, root)
        layouts = grid(options.num_cores, max_workers=options.max_workers, max_batch=contents.options.max_rows)
        started = time.monotonic()
        first = _measure(root, contents, options, layouts[0], seconds=0.2)
        if first.problem:
            raise Unavailable(f"{contents.model_version} ({contents.variant}) cannot be measured ({first.problem})")
        start_s = time.monotonic() - started - 0.2 - _MIN_WARMUP_S
        return search(
            layouts,
            options,
            lambda layout, seconds: _measure(root, contents, options, layout, seconds),
            start_s=start_s,
            clock=time.monotonic,
            progress=progress,
        )


def search(
    layouts: Sequence[WorkerLayout],
    options: TuneOptions,
    measure: Measure,
    *,
    start_s: float,
    clock: Callable[[], float],
    progress: Callable[[str], None],
) -> Tuned:
    """Halve what is left until a few are measured well, and choose among them.

    Args:
        measure: Measures one layout for so many seconds.
        start_s: What each measurement costs beside that. A fifth of each is warm-up.
    """
    goal, began = options.goal, clock()
    latest: dict[WorkerLayout, Measured] = {}
    left = list(layouts)
    plan = rounds(len(left), options.budget_s, start_s)
    for number, each in enumerate(plan, 1):
        left = survivors([latest[layout] for layout in left], goal, each.num_layouts) if latest else left
        for layout in left:
            progress(f"round {number} of {len(plan)}: {layout}, {each.seconds:.1f} s")
            latest[layout] = measure(layout, each.seconds / (1 + _WARMUP))
    finalists = list(left)
    # One more than the budget allows is better than to say that nothing holds the goal when something may.
    while (again := second_chance(latest, finalists, goal)) is not None and (finalists == left or clock() - began < options.budget_s):
        progress(f"again: {again}, {plan[-1].seconds:.1f} s")
        latest[again] = measure(again, plan[-1].seconds / (1 + _WARMUP))
        finalists.append(again)
    choice = choose([latest[layout] for layout in finalists], goal)
    rest = [layout for layout in latest if layout not in finalists]
    return Tuned(choice=choice, holds=goal.holds(choice), measured=tuple(latest[layout] for layout in (*finalists, *rest)))


def _measure(root: Path, contents: ArchiveContents, options: TuneOptions, layout: WorkerLayout, seconds: float) -> Measured:
    path = f"/predictions/{contents.model_version.model}/{contents.engine_version}"
    load = Load(
        connections=options.connections,
        seconds=seconds,
        warmup_s=max(_MIN_WARMUP_S, _WARMUP * seconds),
        rate_per_s=options.goal.rate_per_s,
    )
    headers: Mapping[str, str] = PROBE_HEADERS
    try:
        with Workers(root, layout) as workers:
            result = run_load(workers.sockets, path, headers, contents.golden.request(max_rows=1), load)
    except Unavailable as error:
        return Measured.failed(layout, error.what)
    problem = result.first_failure
    if not problem:
        problem = "; ".join(contents.golden.judge(200, result.first_answer, max_rows=1).problems)
    return Measured(
        layout=layout,
        requests_per_s=result.requests_per_s,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        seconds=seconds,
        problem=problem,
    )
