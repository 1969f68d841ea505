"""The plot: throughput against p99, one line for each server along its numbers of connections."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rates import BINARY, JSON, Rates
from benchmarks.servers.modelway import TITLES


def draw(rates: Rates, path: Path) -> None:
    """Write it as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415  heavy, and only this needs it
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, form in zip(figure.subplots(1, 2), (BINARY, JSON), strict=True):
        for server in rates.servers:
            points = [rates.summary(server, form, number) for number in rates.connections()]
            points = [point for point in points if point.requests_per_s]
            if points:
                ours = server in TITLES
                axes.plot(
                    [point.requests_per_s for point in points],
                    [point.p99_ms for point in points],
                    marker="o",
                    markersize=4,
                    linewidth=2.2 if ours else 1.0,
                    linestyle="-" if ours else "--",
                    label=server,
                )
        axes.set(xscale="log", yscale="log", xlabel="good answers per second", ylabel="p99, ms", title=form)
        axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})
