"""`make bench`: everything that this project says about speed, measured in one run, side by side.

python -m benchmarks                          takes about 35 minutes, writes docs/performance.md and docs/performance.svg
python -m benchmarks --quick [--output F]     a smoke run of two minutes, whose figures mean nothing
python -m benchmarks --only servers --servers triton,stock

The rivals' environments are built by `make bench-setup`. A rival or a part that fails is listed as failed, the others are
measured, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from benchmarks import machine, parts, plot
from benchmarks.catalogue import RIVALS, installed_version
from benchmarks.effort import FULL, QUICK, Effort
from benchmarks.rates import BINARY, JSON
from benchmarks.report import Results, render
from benchmarks.servers.modelway import TITLES
from benchmarks.servers.rival import Rival
from benchmarks.setup_environments import is_built
from registry.errors import ModelwayError

Part = TypeVar("Part")
Say = Callable[[str], None]
_DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
PARTS = ("servers", "models", "releases", "footprint")
_QUICK_PARTS = ("servers", "releases", "footprint")
_QUICK_SERVERS = ("stock",)


def main(argv: Sequence[str]) -> int:
    """Measure, print, write; 1 if a request to Modelway failed, a version was wrong, or something was not measured."""
    arguments, say = _parse(argv), progress(time.monotonic())
    output = arguments.output or (None if arguments.quick else _DOCUMENT)
    wanted = arguments.only or (_QUICK_PARTS if arguments.quick else PARTS)
    names = arguments.servers if arguments.servers is not None else (_QUICK_SERVERS if arguments.quick else tuple(RIVALS))
    directory = Path(tempfile.mkdtemp(prefix="modelway-bench-"))
    command = " ".join(["python -m benchmarks", *argv]) if argv else "make bench"
    results = run(directory, QUICK if arguments.quick else FULL, wanted, names, say, command=command, quick=arguments.quick)
    if output is not None and results.servers:
        results.plot = output.with_suffix(".svg").name
        plot.draw(results.servers.mlp.rates, output.with_suffix(".svg"))
    document = render(results)
    print(document)
    if output is not None:
        output.write_text(document)
        say(f"written to {output}")
    problems = problems_of(results)
    for problem in problems:
        say(f"Error: {problem}")
    if problems:
        say(f"The logs are in {directory}.")
        return 1
    shutil.rmtree(directory)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run beside stock TorchServe; writes no document unless --output names one"
    )
    parser.add_argument("--only", type=_names(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}; all by default")
    parser.add_argument("--servers", type=_names(RIVALS), help=f"rivals, separated by commas: {', '.join(RIVALS)}; all by default")
    parser.add_argument("--output", type=Path, help="where the document goes, with its plot beside it; by default docs/performance.md")
    return parser.parse_args(argv)


def _names(known: Sequence[str] | dict[str, Rival]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        given = tuple(name for name in text.split(",") if name and name not in ("gateway", "sockets", "node"))
        unknown = [name for name in given if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown ({', '.join(unknown)}); there are {', '.join(known)}")
        return given

    return parse


def problems_of(results: Results) -> list[str]:
    """What must not happen and did."""
    found = [f"{name} was not measured: {why}" for name, why in results.failed_parts.items()]
    if results.servers:
        campaigns = [results.servers.mlp, *results.servers.large.values()]
        found += [f"{title} was not measured: {why}" for campaign in campaigns for title, why in campaign.broken.items()]
        found += [failure for campaign in campaigns for failure in campaign.rates.failures(TITLES)]
        silent = [
            s
            for s in results.servers.mlp.rates.servers
            if not any(results.servers.mlp.rates.best(s, f).requests_per_s for f in (BINARY, JSON))
        ]
        found += [f"{server} gave no good answer" for server in silent]
    if results.models:
        found += [failure for rates in results.models.rounds for failure in rates.failures(TITLES)]
    if results.releases:
        found += results.releases.failures[:5]
        rows = results.releases.rows
        found += [f"{row.num_wrong_version} wrong versions after {row.kind} by {row.via}" for row in rows if row.num_wrong_version]
    return found


def run(directory: Path, effort: Effort, wanted: Sequence[str], names: Sequence[str], say: Say, *, command: str, quick: bool) -> Results:
    """Measure part by part; what a part started is stopped whatever happens, and a part that fails does not stop the others."""
    rivals = [RIVALS[name] for name in names]
    results = Results(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=command,
        quick=quick,
        machine=machine.describe(),
        versions={rival.title: installed_version(rival) for rival in rivals if is_built(rival.environment)},
        how={rival.title: rival.how for rival in rivals},
        failed_parts={},
    )
    if "servers" in wanted:
        results.servers = _try("servers", results, say, lambda: parts.measure_servers(directory / "servers", effort, rivals, say))
    if "models" in wanted:
        results.models = _try("models", results, say, lambda: parts.measure_models(directory / "models", effort, say))
    with_releases, with_footprint = "releases" in wanted, "footprint" in wanted
    if with_releases or with_footprint:
        found = _try(
            "releases and footprint",
            results,
            say,
            lambda: parts.measure_platform(
                directory / "platform", effort, with_releases=with_releases, with_footprint=with_footprint, say=say
            ),
        )
        results.releases, results.footprint = found or (None, None)
    return results


def _try(name: str, results: Results, say: Say, measure: Callable[[], Part]) -> Part | None:
    try:
        return measure()
    except (ModelwayError, OSError, subprocess.SubprocessError) as error:
        results.failed_parts[name] = str(error)
        say(f"Error: {name}: {error}")
        return None


def progress(since: float) -> Callable[[str], None]:
    """Says what is going on, after the seconds since that time of `time.monotonic`."""

    def say(text: str) -> None:
        print(f"[{time.monotonic() - since:4.0f} s] {text}", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
