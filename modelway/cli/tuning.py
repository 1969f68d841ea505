"""tune: how a version runs best on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelway.cli.output import JsonOption, Row, print_json, print_rows, say
from registry.errors import Refused
from registry.names import check_variant, parse_model_version

if TYPE_CHECKING:
    from modelway.tuning import TuningReport


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(tune)


def tune(
    model_version: Annotated[str, typer.Argument(metavar="MODEL/VERSION", help="For example digits/3.")],
    *,
    variant: Annotated[str | None, typer.Option(help="The variant; by default the fastest whose certificate passes.")] = None,
    latency_p99_ms: Annotated[float, typer.Option(help="Largest 99th percentile of latency, in milliseconds, at the worker.")] = 20.0,
    connections: Annotated[int, typer.Option(min=1, help="Connections that keep asking, spread over the workers.")] = 32,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second that arrive whatever happens; by default each connection asks when answered.")
    ] = None,
    max_workers: Annotated[int | None, typer.Option(min=1, max=64, help="Most workers to try; by default one per core.")] = None,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds for the whole search.")] = 120.0,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the trade-off (.svg or .png); by default in the home.")] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Take the tuning away, of all variants or of --variant; measure nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find workers, threads and batch limit for this machine by measuring, and keep them with the version.

    \b
    modelway tune digits/3 --latency-p99-ms 20
    modelway tune digits/3 --variant onnx-int8-static --rate 500 --budget-s 300
    """
    from modelway.settings import load_settings
    from modelway.tuning import forget_tuning, num_cores, tune_version
    from serving.tuning import Goal, TuneOptions

    version, settings = parse_model_version(model_version), load_settings()
    if variant is not None:
        check_variant(variant)
    if forget:
        forgotten = forget_tuning(settings, version, variant)
        say(f"{version}: forgot the tuning of {', '.join(forgotten)}." if forgotten else f"{version} is already without such a tuning.")
        if as_json:
            print_json({"version": str(version), "forgotten": forgotten})
        return
    options = TuneOptions(
        goal=Goal(limit_p99_ms=latency_p99_ms, rate_per_s=rate),
        num_cores=num_cores(),
        connections=connections,
        max_workers=max_workers,
        budget_s=budget_s,
    )
    report = tune_version(settings, version, variant, options=options, plot_path=plot, progress=say)
    if as_json:
        print_json(report.to_json())
    else:
        print_rows(_rows(report), as_json=False)
    say(f"The trade-off as a picture: {report.plot}")
    if not report.stored:
        raise _refusal(report, options.connections)
    say(f"{version} ({report.variant}): {report.tuned.choice.layout}, kept with the version.")
    say(f"Next: modelway promote {version} --variant {report.variant}")


def _rows(report: TuningReport) -> list[Row]:
    """The measurements, fastest first."""
    by_rate = sorted(report.tuned.measured, key=lambda m: -m.requests_per_s)
    return [
        {
            "workers": m.layout.num_workers,
            "threads": m.layout.num_threads,
            "batch": m.layout.batch_size,
            "requests/s": round(m.requests_per_s),
            "p50 ms": m.p50_ms,
            "p99 ms": m.p99_ms,
            "measured s": round(m.seconds, 1),
            f"p99 <= {report.goal.limit_p99_ms:g} ms": report.goal.holds(m),
            "chosen": "*" if report.tuned.holds and m is report.tuned.choice else "",
            "problem": m.problem or None,
        }
        for m in by_rate
    ]


def _refusal(report: TuningReport, connections: int) -> Refused:
    goal, nearest = report.goal, report.tuned.choice
    load = f"{goal.rate_per_s:g} requests/s" if goal.rate_per_s else f"{connections} connections"
    reason = nearest.problem or f"p99 {nearest.p99_ms:.4g} ms at {nearest.requests_per_s:.0f} requests/s"
    return Refused(
        f"nothing holds p99 <= {goal.limit_p99_ms:g} ms under {load}",
        "Nothing was kept. Raise --latency-p99-ms, ask less (--connections, --rate), or try a faster --variant.",
        reasons=[f"the nearest is {nearest.layout}: {reason}"],
    )
