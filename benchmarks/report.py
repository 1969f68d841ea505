"""The document of one run. Pure: results in, Markdown out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import releases as release_trials
from benchmarks.footprint import MIB, Footprint, Part
from benchmarks.releases import Releases
from benchmarks.throughput import GATEWAY, NODE, STOCK, Throughput


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that one run measured."""

    date: str
    command: str
    quick: bool
    machine: Mapping[str, str]
    throughput: Throughput
    releases: Releases
    footprint: Footprint
    payload_bytes: int


def render(results: Results) -> str:
    """`docs/performance.md`."""
    parts = [
        "# Performance",
        f"Measured on {results.date} by one run of `{results.command}`, which wrote this document. Run it again on your machine: the "
        "ratios travel, the figures do not.",
    ]
    if results.quick:
        parts.append("**This was a short run that only shows that the measurements work. Its figures mean nothing.**")
    parts += [
        _table(("", ""), list(results.machine.items())),
        _throughput(results),
        _releases(results.releases),
        _footprint(results.footprint),
    ]
    return "\n\n".join(parts) + "\n"


def _throughput(results: Results) -> str:
    throughput = results.throughput
    num_rounds = len(throughput.rounds)
    servers = [
        (
            row.connections,
            row.target,
            f"{row.requests_per_s:,.0f}",
            f"{row.range_requests_per_s[0]:,.0f} to {row.range_requests_per_s[1]:,.0f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.ratio_to_stock:.2f}",
        )
        for row in throughput.rows
    ]
    engine = [
        (
            f"ONNX Runtime, batch {row.batch}",
            f"{row.rows_per_s:,.0f}",
            f"{row.range_rows_per_s[0]:,.0f} to {row.range_rows_per_s[1]:,.0f}",
            f"{row.ratio_to_stock:.2f}",
        )
        for row in throughput.engine_rows
    ]
    return "\n\n".join(
        (
            "## Throughput and latency",
            f"An MLP 1000-500-250-10 in float32; each request is one row as JSON ({results.payload_bytes:,} bytes, the same for every "
            f"server). Closed loop: each connection sends its next request when the last one is answered. Medians of {num_rounds} "
            f"interleaved rounds of {throughput.duration_s:g} s, all servers up at the same time, the client a process of its own on the "
            "same machine. Every status is checked, and the numbers of every 20th answer. A ratio is the median of the ratios of each "
            f"round. Failed: {sum(cell.failed for cells in throughput.rounds for cell in cells)}.",
            _table(
                ("connections", "server", "requests/s", "slowest to fastest round", "p50, ms", "p99, ms", "times stock TorchServe"), servers
            ),
            f"- *{GATEWAY}*: what a client gets, Open Inference Protocol v2 through Envoy to one worker.\n"
            f"- *{NODE}*: the same request on the Unix socket of the same TorchServe process, as Envoy sends it.\n"
            f"- *{STOCK}*: TorchServe with its default configuration and logging, and a plain handler that runs the same ONNX file with "
            f"one thread, archived with torch-model-archiver (`benchmarks/stock_handler.py`); by default it starts a worker per core, "
            f"here {throughput.num_stock_workers}.",
            "The engine alone, in process, with one thread and no server: the ceiling of what a worker can do.",
            _table(("engine", "rows/s", "slowest to fastest round", "times stock TorchServe at 32 connections"), engine),
        )
    )


def _releases(releases: Releases) -> str:
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
            _table(
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


def _footprint(footprint: Footprint) -> str:
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
            "each. The processes below a node are its workers, one for each loaded version; those below MLflow are its server's. The "
            "last row is stock TorchServe with the same model: its launcher, and below it Java and the workers.",
            _table(("part", "own process", "processes below it", "their memory", "together"), memory),
            "Seconds from the command to its end; after `up --detach` the platform answers.",
            _table(("command", "times", "median, s", "worst, s"), times),
        )
    )


def _memory_row(part: Part) -> tuple[object, ...]:
    below = f"{part.below_bytes / MIB:,.0f}" if part.num_below else ""
    return (part.name, f"{part.own_bytes / MIB:,.0f}", part.num_below or "", below, f"{part.total_bytes / MIB:,.0f}")


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
