"""A real Envoy for a test: started from its own ProcessSpec, stopped at the end, on ports and sockets of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from registry.signature import Signature, TensorSpec
from serving.envoy.config import EnvoyConfig
from serving.envoy.files import prepare
from serving.envoy.gateway import EnvoyGateway
from serving.envoy.process import process
from serving.routes import Backend

SIGNATURE = Signature((TensorSpec("input", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, 3)),))


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def backend(release_id: int, *sockets: Path | str, version: int | None = None, model: str = "digits") -> Backend:
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
    )


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
        deadline = time.monotonic() + 20
        while not self.gateway.ready():
            assert self.process.poll() is None, self.config.log.read_text()
            assert time.monotonic() < deadline, self.config.log.read_text()
            time.sleep(0.02)
        return self

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
