"""The platform as a set of programs: which there are, in which order, and how `up` runs them.

mlflow  ->  node-0 ... node-n  ->  gateway  ->  controller  ( ->  prometheus )
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import httpx

from modelway import mlflow_server
from modelway.composition import CONTROLLER, build_gateway, build_nodes, prometheus_process
from modelway.control import ControlClient
from modelway.home import prepare_home
from modelway.ports_in_use import check_free
from modelway.processes import terminate
from modelway.settings import Settings
from modelway.supervisor import Child, Supervisor, stop_orphans, supervisors
from registry.errors import ModelwayError, TimedOut, UsageError
from serving import envoy, torchserve
from serving.process import ProcessSpec

# Component -> the setting of the port that it listens on, if it listens on one.
COMPONENTS: Mapping[str, str | None] = {
    "mlflow": "mlflow_port",
    "node": None,
    "gateway": "gateway_port",
    "controller": "control_port",
    "prometheus": "prometheus_port",
}
_READY_TIMEOUT_S = 120.0
_DRAIN_TIMEOUT_S = 30.0


def children(settings: Settings, components: Sequence[str]) -> list[Child]:
    """The programs of the wanted components, in the order in which they start.

    Raises:
        UsageError: An unknown component.
    """
    for component in components:
        if component not in COMPONENTS:
            raise UsageError(f"unknown component ({component})", f"Components are: {', '.join(COMPONENTS)}.")
    wanted: list[Child] = []
    if "mlflow" in components and settings.mlflow_is_embedded:
        wanted.append(_mlflow(settings))
    if "node" in components:
        wanted += [_node(config) for config in build_nodes(settings)]
    if "gateway" in components:
        wanted.append(_gateway(settings))
    if "controller" in components:
        wanted.append(_controller(settings))
    if "prometheus" in components and settings.prometheus:
        wanted.append(Child(spec=prometheus_process(settings), ready=_answers(f"http://127.0.0.1:{settings.prometheus_port}/-/ready")))
    return wanted


def check_ports(settings: Settings, components: Sequence[str]) -> None:
    """Raise UsageError or Unavailable, naming the owner, if a component's port cannot be listened on."""
    check_free(settings, [port for name in components if (port := COMPONENTS.get(name)) is not None])


def run(settings: Settings, components: Sequence[str], tell: Callable[[str], None]) -> None:
    """Start the components, look after them until SIGTERM or Ctrl-C, and stop them again.

    Raises:
        Conflict: They run already.
        UsageError: A port is taken, or the home cannot be written.
        Unavailable, TimedOut: A program does not start.
    """
    programs = children(settings, components)
    prepare_home(settings)
    check_ports(settings, components)
    supervisor = Supervisor(programs, run_dir=settings.run_dir, tell=tell)

    def stop(number: int, frame: FrameType | None) -> None:
        supervisor.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with supervisor:
        supervisor.start(timeout_s=_READY_TIMEOUT_S)
        tell("the platform is up")
        supervisor.run()
        tell("stopping: requests in flight are answered first")


def is_up(settings: Settings) -> bool:
    """Whether a supervisor of this home runs."""
    return settings.run_dir.is_dir() and bool(supervisors(settings.run_dir))


def stop(settings: Settings, tell: Callable[[str], None], timeout_s: float = 90.0) -> bool:
    """Stop whatever runs in this home. Returns False if nothing did.

    Raises:
        TimedOut: A supervisor does not end.
    """
    running = supervisors(settings.run_dir) if settings.run_dir.is_dir() else {}
    for pid in running:
        tell(f"stopping {', '.join(running[pid])} (supervisor pid {pid})")
        if not terminate(pid, timeout_s):
            raise TimedOut(f"the supervisor does not end within {timeout_s:g} s (pid {pid})", f"See `modelway status`, or kill {pid}.")
    orphans = stop_orphans(settings.run_dir) if settings.run_dir.is_dir() else []
    for name in orphans:
        tell(f"stopped {name}, whose supervisor was gone")
    return bool(running or orphans)


def _mlflow(settings: Settings) -> Child:
    return Child(spec=mlflow_server.process(settings), ready=lambda: mlflow_server.ready(settings))


def _node(config: torchserve.TorchServeConfig) -> Child:
    node = torchserve.TorchServeNode(config)
    return Child(spec=torchserve.process(config), ready=node.ready, prepare=lambda: torchserve.prepare(config))


def _gateway(settings: Settings) -> Child:
    gateway, config = build_gateway(settings)
    return Child(
        spec=envoy.process(config),
        ready=gateway.ready,
        prepare=lambda: envoy.prepare(config),
        drain=lambda: gateway.drain(_DRAIN_TIMEOUT_S),
        tend=lambda: envoy.rotate_access_log(config),
    )


def _controller(settings: Settings) -> Child:
    spec = ProcessSpec(
        name=CONTROLLER,
        argv=(sys.executable, "-m", "modelway.controller"),
        cwd=settings.home,
        env={"PATH": os.environ.get("PATH", os.defpath), **settings.environment()},
        log=settings.logs / "controller.log",
        stop_timeout_s=10.0,
    )
    return Child(spec=spec, ready=lambda: _controller_ready(settings), ready_timeout_s=_READY_TIMEOUT_S)


def _controller_ready(settings: Settings) -> bool:
    with ControlClient(settings.control_url, timeout_s=1.0) as control:
        return control.ready()


def _answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            return httpx.get(url, timeout=1.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return ready


def addresses(settings: Settings) -> dict[str, str]:
    """What listens where, for people."""
    found = {
        "gateway": settings.gateway_url,
        "control API": f"{settings.control_url}/docs",
        "MLflow": settings.mlflow_url,
        "metrics": f"{settings.control_url}/metrics, /metrics/gateway, /metrics/nodes/NAME",
        "prometheus.yml": str(settings.home / "prometheus" / "prometheus.yml"),
        "logs": str(settings.logs),
    }
    if settings.prometheus:
        found["Prometheus"] = f"http://127.0.0.1:{settings.prometheus_port}"
    return found


def spawn_detached(settings: Settings, components: Sequence[str]) -> int:
    """Start `modelway up` in a session of its own and wait until the platform is up; the supervisor's pid.

    Raises:
        ModelwayError: It did not come up; carries its own words.
    """
    import subprocess  # noqa: PLC0415  only here

    children(settings, components)
    prepare_home(settings)
    check_ports(settings, components)
    log = settings.logs / "up.log"
    argv = [sys.executable, "-m", "modelway", "up", *(part for name in components for part in ("--component", name))]
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **settings.environment()},
            start_new_session=True,
        )
    while process.poll() is None:
        if b"the platform is up" in _read_from(log, start):
            return process.pid
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    lines = _read_from(log, start).decode(errors="replace").strip().splitlines()
    raise ModelwayError(lines[-1].removeprefix("Error: ") if lines else "modelway up ended without a word", f"Its log is {log}.")


def _read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()
