"""A real Envoy for a test: started from its own ProcessSpec, stopped at the end, on ports and sockets of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from registry.signature import Signature, TensorSpec
from serving.envoy.config import EnvoyConfig
from serving.envoy.files import prepare
from serving.envoy.gateway import EnvoyGateway
from serving.envoy.process import process
from serving.routes import Backend, ChannelRoute, RouteTable
from support.polling import wait_until
from support.ports import free_port

SIGNATURE = Signature((TensorSpec("input", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, 3)),))


def backend(
    release_id: int, *sockets: Path | str, version: int | None = None, model: str = "digits", workers: Sequence[Path | str] = ()
) -> Backend:
    """A release of `digits` behind those sockets; its version is its number unless said otherwise."""
    version = version or release_id
    return Backend(
        release_id=release_id,
        model=model,
        version=version,
        variant="onnx-fp32",
        engine_version=f"{version}-onnx-fp32-{release_id:012x}",
        signature=SIGNATURE,
        sockets=tuple(map(str, sockets)),
        worker_sockets=tuple(map(str, workers)),
    )


def live(release: Backend, *others: Backend, channel: str = "production") -> RouteTable:
    """A table with one channel that is served by one release; the others are warm."""
    route = ChannelRoute(model=release.model, channel=channel, live=release.release_id)
    return RouteTable(backends=tuple(sorted((release, *others), key=lambda b: b.release_id)), channels=(route,))


def canary(release: Backend, candidate: Backend, percent: float) -> RouteTable:
    """A production channel split between two releases."""
    route = ChannelRoute(
        model=release.model, channel="production", live=release.release_id, candidate=candidate.release_id, candidate_percent=percent
    )
    return RouteTable(backends=tuple(sorted((release, candidate), key=lambda b: b.release_id)), channels=(route,))


class RunningEnvoy:
    """One Envoy with a home of its own. `sockets` is a short directory for the sockets of nodes."""

    def __init__(self, **settings: Any) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mw-"))  # short: Unix sockets allow 107 bytes
        self.sockets = self.home / "s"
        directories = {"directory": self.home / "gateway", "socket_dir": self.sockets}
        logs = {"log": self.home / "gateway.log", "access_log": self.home / "access.log"}
        self.config = EnvoyConfig(**{"port": free_port(), **directories, **logs, **settings})
        self.gateway = EnvoyGateway(self.config)
        self.process: subprocess.Popen[bytes] | None = None
        prepare(self.config)

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self.config.port}"

    def start(self) -> Self:
        prepare(self.config)
        spec = process(self.config)
        with spec.log.open("ab") as log:
            self.process = subprocess.Popen(spec.argv, cwd=spec.cwd, env=dict(spec.env), stdout=log, stderr=log)
        wait_until(lambda: self._alive() and self.gateway.ready(), what="Envoy's readiness")
        return self

    def _alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.config.log.read_text()
        return True

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
