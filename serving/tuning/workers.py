"""Real workers of an unpacked archive, each a process with a socket of its own, as a node would start them."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from registry.errors import Unavailable
from registry.tuning import WorkerLayout

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Workers:
    """A context manager: the workers of a layout, ready to answer; gone when it ends.

    Args:
        archive: Directory of the unpacked archive. The code in it is what runs.

    Raises:
        Unavailable: On entering, with what a worker said that did not get ready.
    """

    def __init__(self, archive: Path, layout: WorkerLayout) -> None:
        self._archive = archive
        self._layout = layout
        self._directory = Path(tempfile.mkdtemp(prefix="mw-tune-"))  # short: a socket's path has at most 107 bytes
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def sockets(self) -> list[str]:
        """One path per worker."""
        return [str(self._directory / f"{index}.sock") for index in range(self._layout.num_workers)]

    def __enter__(self) -> Self:
        try:
            for socket in self.sockets:
                self._processes.append(self._start(socket))
            deadline = time.monotonic() + _START_TIMEOUT_S
            for process in self._processes:
                self._wait_until_ready(process, deadline)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _start(self, socket: str) -> subprocess.Popen[bytes]:
        layout = self._layout
        argv = [sys.executable, "-m", "modelway_runtime.serve", "--archive", ".", "--socket", socket, "--until-eof"]
        argv += ["--threads", str(layout.num_threads), "--batch-size", str(layout.batch_size)]
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1"}
        with (self._directory / f"{Path(socket).stem}.log").open("wb") as log:
            return subprocess.Popen(argv, cwd=self._archive, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise Unavailable(f"a worker did not get ready within {_START_TIMEOUT_S:g} s ({self._layout})")
        if process.stdout.readline().strip() != b"ready":
            said = [line for log in sorted(self._directory.glob("*.log")) for line in log.read_text(errors="replace").splitlines() if line]
            raise Unavailable(f"a worker did not start ({said[-1][:300] if said else 'without a word'})")

    def _stop(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._processes.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
