"""`make bench`: everything that this project says about speed, measured in one run, side by side.

python -m benchmarks                        takes about 7 minutes, writes docs/performance.md
python -m benchmarks --quick [--output F]   a smoke run of a minute, whose figures mean nothing
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import footprint, machine, releases, throughput
from benchmarks.bundles import write_onnx
from benchmarks.mlp import MODEL, payload, rows
from benchmarks.platform_under_test import PlatformUnderTest
from benchmarks.report import Results, render
from benchmarks.stock_torchserve import StockTorchServe

_DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
_SHOWN = 20  # of each kind of problem


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        num_rounds: Rounds of throughput; each takes 11 times `cell_s` and a quarter more for warming up.
        cell_s: Seconds of one server at one number of connections.
        num_warm: Promotions and warm rollbacks, by each of the two ways of giving them.
        num_cold: The same of cold rollbacks.
        num_restarts: Further starts of the platform.
        num_helps: Runs of `modelway --help`.
        settle_s: Idle seconds before memory is read.
    """

    num_rounds: int
    cell_s: float
    num_warm: int
    num_cold: int
    num_restarts: int
    num_helps: int
    settle_s: float


FULL = Effort(num_rounds=3, cell_s=3.0, num_warm=10, num_cold=5, num_restarts=2, num_helps=7, settle_s=10.0)
QUICK = Effort(num_rounds=1, cell_s=0.25, num_warm=1, num_cold=1, num_restarts=0, num_helps=1, settle_s=0.0)


def main(argv: Sequence[str]) -> int:
    """Measure, print, write; 1 if any request failed or was answered by the wrong version."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no document unless --output names one")
    parser.add_argument("--output", type=Path, help="where the document goes; by default docs/performance.md")
    arguments = parser.parse_args(argv)
    output = arguments.output or (None if arguments.quick else _DOCUMENT)
    command = "python -m benchmarks --quick" if arguments.quick else "make bench"
    directory = Path(tempfile.mkdtemp(prefix="modelway-bench-"))
    results = run(directory, QUICK if arguments.quick else FULL, command=command, quick=arguments.quick)
    document = render(results)
    print(document)
    if output is not None:
        output.write_text(document)
        _say(f"written to {output}")
    problems = problems_of(results)
    for problem in problems:
        _say(f"Error: {problem}")
    if problems:
        _say(f"The logs are in {directory}.")
        return 1
    shutil.rmtree(directory)
    return 0


def problems_of(results: Results) -> list[str]:
    """What must not happen and did."""
    wrong = [
        f"{row.num_wrong_version} wrong versions after {row.kind} by {row.via}" for row in results.releases.rows if row.num_wrong_version
    ]
    return [*results.throughput.failures, *results.releases.failures[:5], *wrong]


def run(directory: Path, effort: Effort, *, command: str, quick: bool) -> Results:
    """Start everything, measure it part by part, and stop it again whatever happens."""
    facts, date = machine.describe(), datetime.now(UTC).strftime("%Y-%m-%d")
    model = directory / "model.onnx"
    write_onnx(model, 1)
    platform, stock = PlatformUnderTest(directory / "home"), StockTorchServe(directory / "stock", model)
    try:
        _say("starting the platform")
        up_fresh_s, up_s = footprint.start_times(platform, effort.num_restarts)
        stock.start()
        platform.register(3)
        platform.command("promote", f"{MODEL}/1")
        help_s = [platform.command("--help") for _ in range(effort.num_helps)]
        stock.wait_ready()
        time.sleep(effort.settle_s)
        parts = footprint.memory_of_parts(platform)
        idle_stock = footprint.memory_of(throughput.STOCK, stock.pid)
        _say("throughput and latency")
        rates = throughput.run(platform, stock, model, num_rounds=effort.num_rounds, duration_s=effort.cell_s, say=_say)
        stock.stop()
        _say("releases under load")
        trials = releases.run(platform, num_warm=effort.num_warm, num_cold=effort.num_cold, say=_say)
    finally:
        stock.stop()
        platform.command("down")
    return Results(
        date=date,
        command=command,
        quick=quick,
        machine=facts,
        throughput=rates,
        releases=trials,
        footprint=footprint.Footprint(parts=parts, stock=idle_stock, up_fresh_s=up_fresh_s, up_s=up_s, help_s=help_s),
        payload_bytes=len(payload(rows(1))),
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
