"""up, down, status, doctor, verify, demo: running the platform and finding out how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelway.cli.output import JsonOption, Row, print_facts, print_json, print_rows, runs_with, say
from registry.errors import ModelwayError, Unavailable

if TYPE_CHECKING:
    from modelway.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (up, down, status, doctor, verify, demo):
        app.command()(command)


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the platform is up.")] = False,
    component: Annotated[
        list[str] | None, typer.Option(help="Only this component (mlflow, node, gateway, controller, prometheus); may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the platform on this machine: MLflow, TorchServe, the gateway, the controller.

    \b
    modelway up
    modelway up --detach
    """
    from modelway import platform
    from modelway.settings import load_settings

    settings = load_settings()
    components = component or list(platform.COMPONENTS)
    if not component and platform.is_up(settings):
        say("The platform is already up.")
        print_facts(dict(platform.addresses(settings)), as_json=as_json)
        return
    if not detach:
        platform.run(settings, components, say)
        return
    pid = platform.spawn_detached(settings, components)
    say(f"The platform is up (supervisor pid {pid}).")
    print_facts(dict(platform.addresses(settings)), as_json=as_json)
    say("Next: modelway status, or modelway promote MODEL/VERSION. Stop it with modelway down.")


def down(*, as_json: JsonOption = False) -> None:
    """Stop the platform: drain, answer what is in flight, leave no process behind.

    \b
    modelway down
    MODELWAY_HOME=/srv/other modelway down
    """
    from modelway import platform
    from modelway.settings import load_settings

    stopped = platform.stop(load_settings(), say)
    say("The platform is down." if stopped else "The platform is already down.")
    if as_json:
        print_json({"stopped": stopped})


def status(*, as_json: JsonOption = False) -> None:
    """What is live, what is on its way, what a rollback goes back to, and how the components are.

    \b
    modelway status
    modelway status --json
    """
    from modelway.control import ControlClient
    from modelway.settings import load_settings
    from modelway.supervisor import read_children

    settings = load_settings()
    processes = [_process_row(child) for child in read_children(settings.run_dir)] if settings.run_dir.is_dir() else []
    try:
        with ControlClient(settings.control_url) as control:
            state: dict[str, Any] = control.status()
    except Unavailable as error:
        if as_json:
            print_json({"processes": processes, "error": str(error)})
        else:
            print_rows(processes, as_json=False)
        raise
    if as_json:
        print_json({**state, "processes": processes})
        return
    print_rows([_channel_row(channel) for channel in state["channels"]], as_json=False, empty="Nothing was released yet.")
    print_rows([{"component": name, "state": what} for name, what in state["components"].items()], as_json=False)
    print_rows(processes, as_json=False)
    for step in state["pending"]:
        say(f"next: {step}")


def _process_row(child: Any) -> Row:
    record = child.record
    return {
        "process": record.name,
        "state": record.state.value if child.running or record.pid is None else "gone",
        "pid": record.pid,
        "supervisor": child.supervisor_pid,
        "crashes": record.num_crashes,
        "last exit": record.last_exit or None,
        "log": record.log,
    }


def _channel_row(channel: Row) -> Row:
    return {
        "model": channel["model"],
        "channel": channel["channel"],
        "live": _release_cell(channel["live"]),
        "runs with": runs_with(channel["live"]["options"]) if channel["live"] else None,
        "on its way": _candidate_cell(channel["candidate"]),
        "rollback target": _target_cell(channel["rollback_target"]),
        "alias": channel["alias"],
    }


def _release_cell(release: Row | None) -> str | None:
    return f"{release['version']} {release['variant']} (release {release['release']})" if release else None


def _candidate_cell(candidate: Row | None) -> str | None:
    if candidate is None:
        return None
    verdict = f", {candidate['verdict']['outcome']}: {'; '.join(candidate['verdict']['reasons'])}" if candidate["verdict"] else ""
    return f"{_release_cell(candidate)} at {candidate['percent']:g}%{verdict}"


def _target_cell(target: Row | None) -> str | None:
    return f"{_release_cell(target)}, {'warm' if target['warm'] else 'cold'}" if target else None


def doctor(*, as_json: JsonOption = False) -> None:
    """Check what the platform needs: programs, ports, disk, versions. Says how to mend what is not right.

    \b
    modelway doctor
    modelway doctor --json
    """
    from modelway.doctor import run_doctor
    from modelway.settings import load_settings

    checks = run_doctor(load_settings())
    print_rows(
        [{"ok": check.ok, "check": check.name, "detail": check.detail, "fix": check.fix or None} for check in checks], as_json=as_json
    )
    bad = [check.name for check in checks if not check.ok]
    if bad:
        raise ModelwayError(f"{len(bad)} of {len(checks)} checks failed ({', '.join(bad)})", "The column FIX says what to do.")


def verify(*, as_json: JsonOption = False) -> None:
    """Check that everything agrees: ledger chain, archive digests, alias = ledger = route = nodes.

    \b
    modelway verify
    modelway verify --json
    """
    from modelway.control import ControlClient
    from modelway.settings import load_settings

    with ControlClient(load_settings().control_url) as control:
        findings = control.verify()
    print_rows(findings, as_json=as_json)
    bad = [finding["check"] for finding in findings if not finding["ok"]]
    if bad:
        raise ModelwayError(
            f"{len(bad)} of {len(findings)} checks failed ({', '.join(bad)})", "The controller mends what it can; look again."
        )


def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the platform running.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train, export, serve, promote through a canary under load, roll back: the whole way on real data.

    \b
    modelway demo
    modelway demo --keep
    """
    from modelway import demo as story
    from modelway import platform
    from modelway.settings import load_settings

    settings = load_settings()
    already_up = platform.is_up(settings)
    components = list(platform.COMPONENTS)
    if not already_up:
        platform.check_ports(settings, components)
    story.prepare_versions(settings, say)
    if not already_up:
        say("starting the platform: MLflow, TorchServe, Envoy, controller")
        platform.spawn_detached(settings, components)
    try:
        facts = story.run_releases(settings, say)
        _show_end(settings, facts, as_json=as_json)
    finally:
        if not keep and not already_up:
            platform.stop(settings, say)
    say("\nNext:")
    for command in ("modelway up --detach", "modelway status", f"modelway promote {story.MODEL}/2 --strategy immediate"):
        say(f"    {command}")


def _show_end(settings: Settings, facts: Row, *, as_json: bool) -> None:
    from modelway import demo as story
    from modelway import platform
    from modelway.cli.releases import history

    if as_json:
        print_json(facts)
        return
    history(story.MODEL, channel=None, events=False, as_json=False)
    print_facts(dict(platform.addresses(settings)), as_json=False)
