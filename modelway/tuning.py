"""Tuning a version: from the registry to measured workers on this machine, and back to the registry. Needs no platform."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from modelway.composition import open_registry, open_tracking, runtime_options
from modelway.settings import Settings
from registry.names import ModelVersion
from registry.tuning import Tuning, document_name, store_tuning
from serving.archive_cache import ArchiveCache
from serving.tuning import Goal, Measured, Tuned, TuneOptions, tune
from serving.tuning.plot import check_plot_path, plot


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningReport:
    """What a tuning found.

    Attributes:
        stored: Whether the version keeps it: only a choice that holds the goal.
    """

    version: ModelVersion
    variant: str
    goal: Goal
    tuned: Tuned
    plot: Path
    stored: bool

    def to_json(self) -> dict[str, Any]:
        """As the command prints it."""
        return {
            "version": str(self.version),
            "variant": self.variant,
            "goal": asdict(self.goal),
            "holds": self.tuned.holds,
            "choice": measured_row(self.tuned.choice),
            "measured": [measured_row(m) for m in self.tuned.measured],
            "plot": str(self.plot),
            "stored": self.stored,
        }


def tune_version(
    settings: Settings,
    version: ModelVersion,
    variant: str | None,
    *,
    options: TuneOptions,
    plot_path: Path | None,
    progress: Callable[[str], None],
) -> TuningReport:
    """Measure a variant (None: the one that a promotion would choose), draw the trade-off, and keep the choice with the version.

    Raises:
        NotFound, Refused, Corrupt, Unavailable: As `ArchiveCache.build`, and when no layout can be measured.
        UsageError: The budget is too short, or the plot's name is of no picture.
    """
    if plot_path is not None:
        check_plot_path(plot_path)
    registry = open_registry(open_tracking(settings))
    with tempfile.TemporaryDirectory(prefix="modelway-tune-") as scratch:
        untuned = runtime_options(settings)
        built = ArchiveCache(Path(scratch), registry, untuned).build(version, variant, untuned)
        tuned = tune(built.archive.path, options, progress)
    path = plot_path or settings.home / "tuning" / f"{version.model}-{version.version}-{built.variant}.svg"
    plot(path, f"{version} {built.variant}", tuned.measured, options.goal, tuned.choice)
    if tuned.holds:
        measured = {
            "at": datetime.now(UTC).isoformat(),
            "machine": machine(),
            "goal": asdict(options.goal),
            "connections": options.connections,
            "budget_s": options.budget_s,
            "choice": measured_row(tuned.choice),
            "measured": [measured_row(m) for m in tuned.measured],
        }
        layout = tuned.choice.layout
        store_tuning(
            registry, Tuning(version=version, variant=built.variant, bundle_sha256=built.bundle_sha256, layout=layout, measured=measured)
        )
    return TuningReport(version=version, variant=built.variant, goal=options.goal, tuned=tuned, plot=path, stored=tuned.holds)


def forget_tuning(settings: Settings, version: ModelVersion, variant: str | None) -> list[str]:
    """Take away the tuning of a variant (None: of every variant); the variants that had one. Raises NotFound, Unavailable."""
    registry = open_registry(open_tracking(settings))
    prefix = f"modelway.{document_name('')}"
    tagged = {tag.removeprefix(prefix) for tag, value in registry.version(version).tags.items() if tag.startswith(prefix) and value}
    forgotten = sorted(tagged if variant is None else tagged & {variant})
    for each in forgotten:
        registry.attach_document(version, document_name(each), None)
    return forgotten


def measured_row(m: Measured) -> dict[str, Any]:
    """One measurement as JSON values."""
    row = {**asdict(m.layout), "requests_per_s": m.requests_per_s, "p50_ms": m.p50_ms, "p99_ms": m.p99_ms, "seconds": m.seconds}
    return {**{name: value if isfinite(value) else None for name, value in row.items()}, "problem": m.problem or None}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What a reader must know of the machine to judge its numbers."""
    return {"system": platform.platform(), "processor": platform.machine(), "cores": num_cores(), "python": platform.python_version()}
