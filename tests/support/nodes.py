"""A real TorchServe in a test: started as the supervisor would, stopped with everything it left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil

from registry.names import ModelVersion
from serving.archive import Archive, RuntimeOptions, build_archive
from serving.ports import LoadState
from serving.torchserve import TorchServeConfig, TorchServeNode, prepare, process
from support.bundles import make_bundle
from support.polling import wait_until

LOAD_TIMEOUT_S = 90.0


class RunningNode:
    """One TorchServe process and the adapter to it. Sockets lie in a short directory of its own."""

    def __init__(self, root: Path, name: str = "node-0", **settings: object) -> None:
        self.socket_root = Path(tempfile.mkdtemp(prefix="mw-"))
        self.config = TorchServeConfig(
            name=name,
            directory=root / name,
            socket_dir=self.socket_root / "s",
            log_file=root / "logs" / f"{name}.log",
            **settings,  # type: ignore[arg-type]
        )
        self.node = TorchServeNode(self.config)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RunningNode:
        prepare(self.config)
        spec = process(self.config)
        with spec.log.open("ab") as log:
            self._process = subprocess.Popen(
                spec.argv, cwd=spec.cwd, env=dict(spec.env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_until(self._is_up, 60, "TorchServe")
        return self

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.config.log_file.read_text()
        return self.node.ready()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def worker_pids(self) -> list[int]:
        """Processes of its workers that live."""
        return [child.pid for child in psutil.Process(self.process.pid).children() if "model_service_worker" in _command_line(child)]

    def kill(self) -> None:
        """SIGKILL of the front and all workers, as the supervisor's last resort does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, then remove what the process owned."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(process(self.config).stop_timeout_s)
            finally:
                if self._process.poll() is None:
                    self.kill()
        shutil.rmtree(self.socket_root)

    def load(self, archive: Archive, num_workers: int = 1) -> None:
        """Store, register and scale, and wait until it is READY."""
        self.node.store(archive.path, archive.sha256)
        self.node.register(archive.name)
        model = archive.name.removesuffix(f"-{archive.engine_version}.mar")
        self.node.scale(model, archive.engine_version, num_workers)
        wait_until(lambda: self.state(archive) is LoadState.READY, LOAD_TIMEOUT_S, f"{archive.name} READY")

    def state(self, archive: Archive) -> LoadState | None:
        """Load state of an archive; None if it is not registered."""
        found = [a.state for a in self.node.observe().archives.values() if a.engine_version == archive.engine_version]
        return found[0] if found else None

    def detail(self, archive: Archive) -> str:
        """What the engine says of a worker of it that is not READY."""
        return next(a.detail for a in self.node.observe().archives.values() if a.engine_version == archive.engine_version)


def make_archive(
    root: Path, version: int = 1, *, model: str = "digits", variant: str = "onnx-fp32", fault: str | None = None, max_rows: int = 1024
) -> Archive:
    """A bundle's archive; the version is the seed, so `expected_logits(x, weights_seed=version)` are its answers."""
    model_version = ModelVersion(model, version)
    bundle = make_bundle(
        Path(tempfile.mkdtemp(dir=root)) / "bundle", version=model_version, weights_seed=version, variants=(variant,), fault=fault
    )
    return build_archive(bundle, variant, model_version, root / "archives", RuntimeOptions(max_rows=max_rows))


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just died
        return ""
