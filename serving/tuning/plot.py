"""The trade-off of a tuning as a picture: throughput against p99, the limit, the choice."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from registry.errors import UsageError
from serving.tuning.search import Goal, Measured

SUFFIXES = (".svg", ".png")
_WORKER_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#b8860b", "#555555")
_BATCH_SIZE_AREA = 18.0


def check_plot_path(path: Path) -> Path:
    """Return `path` if a picture can have that name, else raise UsageError."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"unknown kind of picture ({path})", f"Use a name that ends with {' or '.join(SUFFIXES)}.")
    return path


def plot(path: Path, title: str, measured: Sequence[Measured], goal: Goal, choice: Measured) -> Path:
    """Write the picture, an SVG or PNG by its suffix; what could not be measured is left out."""
    from matplotlib.figure import Figure  # noqa: PLC0415  half a second

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    layouts = sorted({(m.layout.num_workers, m.layout.num_threads) for m in measured})
    for number, (num_workers, num_threads) in enumerate(layouts):
        group = [m for m in measured if (m.layout.num_workers, m.layout.num_threads) == (num_workers, num_threads) and isfinite(m.p99_ms)]
        group.sort(key=lambda m: m.layout.batch_size)
        colour = _WORKER_COLOURS[number % len(_WORKER_COLOURS)]
        p99, rates = [m.p99_ms for m in group], [m.requests_per_s for m in group]
        axes.plot(p99, rates, color=colour, linewidth=1, alpha=0.5)
        label = f"{num_workers} worker(s) x {num_threads} thread(s)"
        axes.scatter(p99, rates, s=_BATCH_SIZE_AREA, color=colour, label=label)
        for m in group:
            axes.annotate(str(m.layout.batch_size), (m.p99_ms, m.requests_per_s), (4, 4), textcoords="offset points", fontsize=8)
    axes.axvline(goal.limit_p99_ms, color="black", linestyle="--", linewidth=1, label=f"limit {goal.limit_p99_ms:g} ms")
    if isfinite(choice.p99_ms):
        axes.scatter([choice.p99_ms], [choice.requests_per_s], s=160, facecolors="none", edgecolors="black", label=str(choice.layout))
    axes.set(xscale="log", xlabel="p99 latency in ms (log scale)", ylabel="requests/s", title=f"{title} (numbers: batch limit)")
    axes.set_ylim(bottom=0)
    for set_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_format("{x:g}")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
