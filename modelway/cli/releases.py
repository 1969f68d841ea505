"""promote, rollback, history: decisions about what serves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelway.cli.output import JsonOption, Row, print_json, print_rows, progress_line, runs_with, say
from registry.errors import ModelwayError, Refused, Unavailable
from registry.names import PRODUCTION, check_model_name, parse_model_version
from registry.strategy import DEFAULT_CANARY, StrategyKind

if TYPE_CHECKING:
    from modelway.control import ControlClient, Json
    from modelway.settings import Settings

Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the release is live or has failed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the steps and change nothing.")]
ModelVersionArgument = Annotated[str, typer.Argument(metavar="MODEL/VERSION", help="For example digits/3.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="For example digits.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(promote)
    app.command()(rollback)
    app.command()(history)


def promote(
    model_version: ModelVersionArgument,
    *,
    channel: Annotated[str, typer.Option("--to", "--channel", help="The channel that shall serve it.")] = PRODUCTION,
    strategy: Annotated[
        StrategyKind | None, typer.Option(help="How it gets its traffic; by default canary, or immediate when nothing is live.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help=f"Canary steps, SHARE%:TIME,...; by default {DEFAULT_CANARY}.")] = None,
    min_samples: Annotated[int, typer.Option(min=1, help="Answered requests on each side that a verdict needs.")] = 50,
    hold: Annotated[float, typer.Option(min=0, help="Seconds without a verdict before the release is given up.")] = 600.0,
    variant: Annotated[str | None, typer.Option(help="The variant; by default the fastest whose certificate passes.")] = None,
    allow_signature_change: Annotated[bool, typer.Option(help="Promote although clients of the live version could break.")] = False,
    reason: Reason = "",
    wait: Wait = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait; the release goes on afterwards.")] = 1800.0,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Let a channel serve a version.

    \b
    modelway promote digits/2
    modelway promote digits/2 --strategy canary --steps 10%:30s,50%:60s --reason "better on sevens"
    """
    from modelway.settings import load_settings

    version = parse_model_version(model_version)
    settings = load_settings()
    body = {
        "version": version.version,
        "channel": channel,
        "variant": variant,
        "strategy": strategy.value if strategy else None,
        "steps": steps,
        "min_samples": min_samples,
        "hold_s": hold,
        "allow_signature_change": allow_signature_change,
        "reason": reason,
        "actor": settings.actor,
        "dry_run": dry_run,
    }
    with _control(settings) as control:
        answer = control.promote(version.model, body)
        _finish(control, answer, wait_s=timeout if wait else None, dry_run=dry_run, as_json=as_json)


def rollback(
    model: ModelArgument,
    *,
    to: Annotated[str | None, typer.Option(help="A version that was live before; by default the previous live one.")] = None,
    channel: Annotated[str, typer.Option(help="The channel that goes back.")] = PRODUCTION,
    reason: Reason = "",
    wait: Wait = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait; the rollback goes on afterwards.")] = 60.0,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Go back to the last good version, now.

    \b
    modelway rollback digits
    modelway rollback digits --to 3 --reason "accuracy fell at 02:40"
    """
    from modelway.settings import load_settings

    check_model_name(model)
    settings = load_settings()
    version = parse_model_version(to if to is None or "/" in to else f"{model}/{to}").version if to is not None else None
    body = {"to": version, "channel": channel, "reason": reason, "actor": settings.actor, "dry_run": dry_run}
    with _control(settings) as control:
        answer = control.rollback(model, body)
        _finish(control, answer, wait_s=timeout if wait else None, dry_run=dry_run, as_json=as_json)


def history(
    model: ModelArgument,
    *,
    channel: Annotated[str | None, typer.Option(help="Only this channel.")] = None,
    events: Annotated[bool, typer.Option("--events", help="Also what happened to each release.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every release of a model: what, who, why, when, and what became of it.

    \b
    modelway history digits
    modelway history digits --events
    """
    from modelway.settings import load_settings

    check_model_name(model)
    releases = [release for release in _releases(load_settings(), model) if channel in (None, release["channel"])]
    if as_json:
        print_json(releases)
    else:
        print_rows([_history_row(release) for release in releases], as_json=False, empty=f"{model} has no release in {channel}.")
        if events:
            print_rows([_event_row(event) for release in releases for event in release["events"]], as_json=False)


def _control(settings: Settings) -> ControlClient:
    from modelway.control import ControlClient

    return ControlClient(settings.control_url)


def _releases(settings: Settings, model: str) -> list[Json]:
    """From the control API, or from the ledger itself when the platform is down: history must always be readable."""
    with _control(settings) as control:
        try:
            return control.releases(model)
        except Unavailable:
            from modelway.composition import read_releases

            say("The platform is not running; this is read from the ledger.")
            return read_releases(settings, model)


def _finish(control: ControlClient, answer: Json, *, wait_s: float | None, dry_run: bool, as_json: bool) -> None:
    """Say what came of a decision: the steps, "already", or the release, waited for if wanted."""
    release = answer["release"]
    if dry_run:
        _print_steps(answer, as_json=as_json)
        return
    if not answer["created"]:
        say(f"{_name(release)} is already {release['status']} in {release['channel']} (release {release['id']}).")
    elif wait_s is not None:
        release = _wait(control, release, wait_s)
    else:
        say(f"Release {release['id']}: {_name(release)} is on its way to {release['channel']}.")
        say(f"Watch it with `modelway history {release['model']} --events`.")
    if as_json:
        print_json(release)


def _print_steps(answer: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    print_rows([{"step": number, "what": what} for number, what in enumerate(answer["steps"], 1)], as_json=False, empty="Nothing to do.")


def _wait(control: ControlClient, release: Json, wait_s: float) -> Json:
    started = time.monotonic()
    show = progress_line()
    try:
        release = control.wait(release, wait_s, on_change=lambda now: show(_progress(now)))
    finally:
        show("")
    seconds = time.monotonic() - started
    if release["status"] in ("live", "retired"):
        say(f"Release {release['id']}: {_name(release)} is live in {release['channel']} after {seconds:.1f} s.")
        if release["kind"] == "promotion":
            say(f"If it is not good: modelway rollback {release['model']} --channel {release['channel']}")
        return release
    raise _failure(release)


def _failure(release: Json) -> ModelwayError:
    what = f"release {release['id']} ({_name(release)}) did not go live: {release['status']}"
    reason = str(_last(release, "aborted").get("reason", "another release took its place"))
    next_step = f"The channel serves what it served before. `modelway history {release['model']} --events` has the details."
    return Refused(what, next_step, reasons=[reason])


def _progress(release: Json) -> str:
    weighted, held = _last(release, "weighted"), _last(release, "held")
    share = f" at {weighted['percent']:g}%" if weighted else ""
    reason = f", held: {'; '.join(held['verdict']['reasons'])}" if held else ""
    last = release["events"][-1]["kind"] if release["events"] else "pending"
    return f"release {release['id']} {_name(release)}: {last}{share}{reason}"


def _name(release: Mapping[str, Any]) -> str:
    return f"{release['model']}/{release['version']} ({release['variant']})"


def _last(release: Json, kind: str) -> Json:
    """Data of the newest event of that kind; empty if there is none."""
    return next((dict(event["data"]) for event in reversed(release["events"]) if event["kind"] == kind), {})


def _history_row(release: Json) -> Row:
    return {
        "release": release["id"],
        "version": f"{release['model']}/{release['version']}",
        "variant": release["variant"],
        "runs with": runs_with(release.get("options")),
        "channel": release["channel"],
        "kind": release["kind"],
        "status": release["status"],
        "decided": _local(release["created_at"]),
        "live after": _seconds_to_live(release),
        "by": release["actor"],
        "why": release["reason"] or None,
        "outcome": _last(release, "aborted").get("reason"),
    }


def _seconds_to_live(release: Json) -> str | None:
    live = next((event["at"] for event in release["events"] if event["kind"] == "live"), None)
    if live is None:
        return None
    return f"{(datetime.fromisoformat(live) - datetime.fromisoformat(release['created_at'])).total_seconds():.1f} s"


def _event_row(event: Json) -> Row:
    data = event["data"]
    verdict = data.get("verdict") or {}
    detail = [f"{data['percent']:g}%"] if "percent" in data else []
    detail += [str(data["reason"])] if data.get("reason") else list(verdict.get("reasons", ()))
    detail += [f"{name}: max error {error:.2g}" for name, error in data.get("nodes", {}).items()] if event["kind"] == "probed" else []
    return {"release": event["release_id"], "at": _local(event["at"]), "event": event["kind"], "detail": "; ".join(detail) or None}


def _local(timestamp: str) -> str:
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
