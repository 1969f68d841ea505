"""The document of one run. Pure: results in, Markdown out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import goals
from benchmarks.footprint import Footprint
from benchmarks.goals import Goal
from benchmarks.markdown import table, times
from benchmarks.parts import Models, Servers
from benchmarks.releases import Releases
from benchmarks.report_platform import footprint_section, releases_section
from benchmarks.report_servers import engine_section, large_section, models_section, open_section, rates_section, setup_section

NOTES = "performance-notes.md"


@dataclass(kw_only=True)
class Results:
    """Everything that one run measured; a part that was not asked for, or that failed, is None.

    Attributes:
        versions: Title of a rival -> its package and version.
        failed_parts: Part -> why there is nothing of it.
        plot: The file name of the plot, beside the document; empty if there is none.
    """

    date: str
    command: str
    quick: bool
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    how: Mapping[str, str]
    failed_parts: dict[str, str]
    servers: Servers | None = None
    models: Models | None = None
    releases: Releases | None = None
    footprint: Footprint | None = None
    plot: str = ""

    @property
    def goals(self) -> list[Goal]:
        """Those that this run can say something about."""
        found = goals.of_servers(self.servers.mlp.rates) if self.servers else []
        return found + (goals.of_arithmetic(self.models.ratios) if self.models else [])


def render(results: Results) -> str:
    """`docs/performance.md`."""
    parts = [
        "# Performance",
        f"Measured on {results.date} by one run of `{results.command}`, which wrote this document. Run it again on your machine: the "
        f"ratios travel, the figures do not. Where the time goes and what was tried is in [{NOTES}]({NOTES}).",
    ]
    if results.quick:
        parts.append("**This was a short run that only shows that the measurements work. Its figures mean nothing.**")
    parts.append(table(("", ""), list(results.machine.items())))
    if results.failed_parts:
        parts.append("**Not measured, because it failed:**")
        parts.append("\n".join(f"- {name}: {_one_line(why)}" for name, why in results.failed_parts.items()))
    if results.goals:
        parts.append(_goals(results.goals))
    if results.servers:
        mlp = results.servers.mlp
        parts.append(rates_section(mlp, results.plot))
        if mlp.rates.fractions():
            parts.append(open_section(mlp.rates))
        if results.servers.large:
            parts.append(large_section(results.servers.large))
        parts.append(engine_section(results.servers))
    if results.models:
        parts.append(models_section(results.models))
    if results.servers:
        parts.append(setup_section(results.servers.mlp, results.how, results.versions))
    if results.releases:
        parts.append(releases_section(results.releases))
    if results.footprint:
        parts.append(footprint_section(results.footprint))
    return "\n\n".join(parts) + "\n"


def _goals(found: list[Goal]) -> str:
    rows = [
        (goal.text, f"{'at least' if goal.at_least else 'at most'} {goal.limit:g}", times(goal.found), goal.verdict, _hardest(goal))
        for goal in found
    ]
    return "\n\n".join(
        (
            "## Goals",
            "Ratios of this run: the median over the rounds of the ratio within each round. Triton is measured without and with a queue "
            "delay, and each figure is compared with the better one of the two.",
            table(("goal", "wanted", "found", "", "to the servers that are hardest to beat"), rows),
        )
    )


def _hardest(goal: Goal) -> str:
    """The ratios to the two servers that are hardest to beat."""
    ordered = sorted(goal.by_server.items(), key=lambda item: item[1], reverse=not goal.at_least)
    return ", ".join(f"{server}: {ratio:.2f}" for server, ratio in ordered[:2])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
