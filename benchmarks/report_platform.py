"""The sections of the document about releases and footprint. Pure: results in, Markdown out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import releases as release_trials
from benchmarks.footprint import MIB, Footprint, Part
from benchmarks.markdown import table
from benchmarks.releases import Releases


def releases_section(releases: Releases) -> str:
    """How long releases take, and what clients saw meanwhile."""
    rows = [
        (
            row.kind,
            row.via,
            row.num_trials,
            f"{row.median_s:.3f}",
            f"{row.worst_s:.3f}",
            row.num_answers_after,
            row.num_wrong_version,
        )
        for row in releases.rows
    ]
    return "\n\n".join(
        (
            "## Releases under load",
            f"Open loop, {release_trials.REQUESTS_PER_S:g} requests/s through the gateway: arrivals do not wait for answers. Every answer "
            "is checked for its status and for the numbers of the version that it names. "
            f"Requests: {len(releases.answers):,}. Failed: {len(releases.failures)}.",
            table(
                (
                    "what",
                    "given by",
                    "times",
                    "median, s",
                    "worst, s",
                    "answers after the acknowledgement",
                    "of the wrong version",
                ),
                rows,
            ),
            f"- *{release_trials.PROMOTION}*: of a version that no worker holds: its archive is checked, loaded, and asked its golden set, "
            "then it takes all traffic at once.\n"
            f"- *{release_trials.WARM}*: back to the previous live version, which is kept loaded.\n"
            f"- *{release_trials.COLD}*: `--to` a version that was unloaded: loaded and asked its golden set before it gets traffic.\n"
            f"- *{release_trials.API}*: from the HTTP call to the answer that the release is live. *{release_trials.COMMAND_LINE}*: the "
            "whole command from its start to its end, with the start of Python.",
        )
    )


def footprint_section(footprint: Footprint) -> str:
    """Memory of the parts at rest, and start times."""
    total = sum(part.total_bytes for part in footprint.parts)
    memory: list[Sequence[object]] = [_memory_row(part) for part in footprint.parts]
    memory.append(("all of Modelway", "", "", "", f"**{total / MIB:,.0f}**"))
    memory.append(_memory_row(footprint.stock))
    times: list[Sequence[object]] = [
        ("`modelway up --detach`, empty home", 1, f"{footprint.up_fresh_s:.2f}", f"{footprint.up_fresh_s:.2f}")
    ]
    if footprint.up_s:
        again = footprint.up_s
        times.append(("`modelway up --detach`, again", len(again), f"{statistics.median(again):.2f}", f"{max(again):.2f}"))
    times.append(("`modelway --help`", len(footprint.help_s), f"{footprint.median_help_s:.2f}", f"{max(footprint.help_s):.2f}"))
    return "\n\n".join(
        (
            "## Footprint",
            "Resident memory of each part of the idle platform with one version live, in MiB; pages that processes share count once for "
            "each. The processes below a node are its workers, two for each loaded version; those below MLflow are its server's. The "
            "last row is stock TorchServe with the same model: its launcher, and below it Java and the workers.",
            table(("part", "own process", "processes below it", "their memory", "together"), memory),
            "Seconds from the command to its end; after `up --detach` the platform answers.",
            table(("command", "times", "median, s", "worst, s"), times),
        )
    )


def _memory_row(part: Part) -> tuple[object, ...]:
    below = f"{part.below_bytes / MIB:,.0f}" if part.num_below else ""
    return (part.name, f"{part.own_bytes / MIB:,.0f}", part.num_below or "", below, f"{part.total_bytes / MIB:,.0f}")
