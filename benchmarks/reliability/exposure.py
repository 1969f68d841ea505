"""P17 and P24: what listens, what is reachable through the gateway, and where planted secrets turn up (nowhere)."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from benchmarks.reliability.abuse import abuses
from benchmarks.reliability.hostile_paths import METHODS, corpus
from benchmarks.reliability.proof import Proof, Say, Subject
from benchmarks.reliability.raw_http import RawConnection, ask_once, request

_GRPC_OF_TORCHSERVE = 2  # per node; cannot be turned off, and wants a key (FACTS: token authorization)
# What TorchServe, Envoy's admin interface or a worker would answer, and the gateway never does.
_FOREIGN = (
    b"nextPageToken",
    b'"models":',
    b"workerStatus",
    b"ConfigDump",
    b"envoy_server",
    b"ts_inference",
    b"<title>Envoy",
    b'{"ready":true}',
)


def sockets(subject: Subject) -> Proof:
    """Which sockets listen, and on which addresses."""
    settings = subject.settings
    pids = {pid for record in settings.run_dir.glob("*.json") for pid in _tree(json.loads(record.read_text())["pid"])}
    listening = {
        (c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in psutil.net_connections("inet") if c.pid in pids and _listens(c)
    }
    intended = {(host, port) for host, port in settings.listeners().values()}
    others = listening - intended
    problems = [f"{name} does not listen" for name, address in settings.listeners().items() if address not in listening]
    if len(others) != _GRPC_OF_TORCHSERVE * settings.nodes or {ip for ip, _ in others} != {"127.0.0.1"}:
        problems.append(f"beside the intended sockets these listen: {sorted(others)}")
    files = [path for path in settings.socket_dir.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    for path in (settings.socket_dir, settings.home):
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            problems.append(f"{path.name} is open to others ({stat.S_IMODE(path.stat().st_mode):04o})")
    figures = {
        "TCP": f"{len(intended)} intended listeners ({', '.join(settings.listeners())}), all on the addresses of the settings",
        "TCP, not wanted": f"{len(others)}: TorchServe's gRPC on 127.0.0.1, which cannot be turned off and does nothing without a key",
        "Unix": f"{len(files)} sockets in a directory of mode 0700",
    }
    return Proof(promise="P17", title="Sockets", figures=figures, problems=tuple(problems))


def _listens(connection: object) -> bool:
    status, remote = getattr(connection, "status", ""), getattr(connection, "raddr", ())
    return bool(
        status == psutil.CONN_LISTEN or (status == psutil.CONN_NONE and not remote and getattr(connection, "type", 0).name == "SOCK_DGRAM")
    )


def _tree(pid: int) -> list[int]:
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def paths(subject: Subject, every: int = 1, say: Say = lambda _: None) -> Proof:
    """The corpus of path tricks, each `every`-th of it, with the real TorchServe and worker sockets behind."""
    connection, problems, num = RawConnection(subject.port), list[str](), 0
    for number, (method, target) in enumerate(corpus()):
        if number % every:
            continue
        num += 1
        reply = connection.ask(request(method, target, {"x-api-key": subject.key}), head_only=method == "HEAD")
        if reply.status == 400:
            connection.close()
        if reply.status >= 500 or any(word in reply.body for word in _FOREIGN):
            problems.append(f"{method} {target} was answered {reply.status} {reply.body[:100]!r}")
        if num % 5000 == 0:
            say(f"P17: {num} paths")
    connection.close()
    figures = {
        "paths": f"{num}, by {len(METHODS)} methods",
        "answers of TorchServe's management, metrics, or of Envoy's admin": str(len(problems)),
    }
    return Proof(promise="P17", title="Paths", figures=figures, problems=tuple(problems[:10]))


def secrets(subject: Subject) -> Proof:
    """Ask in every wrong way, then look for the key and the planted secrets wherever somebody might read them."""
    for abuse in abuses(subject.model):
        ask_once(subject.port, abuse.bytes_with(subject.key))
    needles = {**subject.planted, "API key": subject.key, "API key's secret": base64.b64decode(subject.key).decode().partition(":")[2]}
    problems, num_places = [], 0
    for place, content in _places(subject):
        num_places += 1
        problems += [f"{name} is in {place}" for name, secret in needles.items() if secret.encode() in content]
    figures = {
        "secrets": f"{len(needles)} ({', '.join(needles)})",
        "places": f"{num_places}: logs, generated files, metrics, status; environment and arguments of all processes of nodes and gateway",
        "found": str(len(problems)),
    }
    return Proof(promise="P24", title="Secrets", figures=figures, problems=tuple(problems))


def _places(subject: Subject) -> Iterator[tuple[str, bytes]]:
    settings = subject.settings
    for folder in (settings.logs, settings.gateway_dir, settings.nodes_dir, settings.run_dir, settings.home / "prometheus"):
        for file in folder.rglob("*"):
            if file.is_file():
                yield str(file.relative_to(settings.home)), file.read_bytes()
    with httpx.Client(base_url=settings.control_url, timeout=30) as control:
        for page in ("/metrics", "/metrics/gateway", "/metrics/nodes/node-0", "/v1/status", "/v1/verify", "/openapi.json"):
            yield page, control.get(page).raise_for_status().content
        yield "an error of the control API", control.post("/v1/models/absent/releases", json={"version": 1}).content
    for record in (*settings.run_dir.glob("node-*.json"), settings.run_dir / "gateway.json"):
        for pid in _tree(json.loads(record.read_text())["pid"]):
            for name in ("environ", "cmdline"):
                yield f"{name} of {record.stem} (pid {pid})", _read(Path(f"/proc/{pid}/{name}"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
