"""An in-memory `ServingEngine`. Passes the same contract tests as the real one; its hooks plant what tests need.

engine = FakeEngine()
engine.failing["2-onnx-fp32-0123456789ab"] = "ValueError: no model"   # its workers die at load
engine.num_looks_until_ready = 3                                      # LOADING for the first looks
engine.down = True                                                    # nobody answers
engine.answer = lambda model, version, body, headers: (500, b"")     # instead of running the archive
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import Corrupt, NotFound, Unavailable
from serving.archive_forms import archive_sha256
from serving.ports import LoadedArchive, LoadState, NodeState
from serving.runtime.modelway_runtime import worker
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.sockets import prefix_of

_ARCHIVE_NAME = re.compile(r"(?P<model>.+)-(?P<engine_version>\d+-[a-z][a-z0-9-]*-[0-9a-f]{12})\.mar")

Answer = Callable[[str, str, bytes, Mapping[str, str]], tuple[int, bytes]]


@dataclass
class _Registered:
    archive_name: str
    num_workers: int = 0
    num_looks: int = 0


@dataclass
class FakeEngine:
    """One node that lives in this process.

    Attributes:
        store_dir: Where archives are copied to; None keeps only their names.
        calls: Every effect that was asked for, in order: (method, argument).
        failing: Engine version -> why its workers die at load.
        num_looks_until_ready: How many observations show LOADING before READY.
        answer: (model, engine version, body, headers) -> (status, body); None runs the archive.
    """

    name: str = "node-0"
    inference_socket: str = "/run/fake/node-0.sock"
    store_dir: Path | None = None
    down: bool = False
    failing: dict[str, str] = field(default_factory=dict)
    num_looks_until_ready: int = 0
    answer: Answer | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)
    registered: dict[tuple[str, str], _Registered] = field(default_factory=dict)
    cores: dict[str, Core] = field(default_factory=dict)  # archive name -> the runtime that answers for it

    def observe(self) -> NodeState:
        if self.down:
            return NodeState(reachable=False)
        archives = {key: self._look(key, entry) for key, entry in self.registered.items()}
        return NodeState(reachable=True, archives=archives, stored=frozenset(self.stored), worker_sockets=self.worker_sockets())

    def _look(self, key: tuple[str, str], entry: _Registered) -> LoadedArchive:
        model, engine_version = key
        reason = self.failing.get(engine_version, "")
        if not entry.num_workers:
            state, reason = LoadState.REGISTERED, ""
        elif reason:
            state = LoadState.FAILED
        else:
            state = LoadState.READY if entry.num_looks >= self.num_looks_until_ready else LoadState.LOADING
            entry.num_looks += 1
        return LoadedArchive(model=model, engine_version=engine_version, state=state, detail=reason)

    def store(self, archive: Path, sha256: str) -> None:
        self._must_be_up()
        self.calls.append(("store", archive.name))
        found = archive_sha256(archive)
        if found != sha256:
            raise Corrupt(f"wrong digest of {archive} ({found}, expected {sha256})")
        if self.store_dir is not None:
            shutil.copyfile(archive, self.store_dir / archive.name)
        self.stored[archive.name] = sha256
        if zipfile.is_zipfile(archive):
            self._load(archive)

    def _load(self, archive: Path) -> None:
        match = _ARCHIVE_NAME.fullmatch(archive.name)
        assert match is not None, archive.name
        with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(archive) as files:
            files.extractall(unpacked)
            try:
                self.cores[archive.name] = worker.load(Path(unpacked), match["engine_version"])
            except LoadError as error:
                self.failing[match["engine_version"]] = str(error)

    def register(self, archive_name: str) -> None:
        self._must_be_up()
        self.calls.append(("register", archive_name))
        if archive_name not in self.stored:
            raise NotFound(f"no such archive in the store of {self.name} ({archive_name})")
        match = _ARCHIVE_NAME.fullmatch(archive_name)
        assert match is not None, archive_name
        self.registered.setdefault((match["model"], match["engine_version"]), _Registered(archive_name))

    def scale(self, model: str, engine_version: str, num_workers: int) -> None:
        self._must_be_up()
        self.calls.append(("scale", f"{engine_version}={num_workers}"))
        self._entry(model, engine_version).num_workers = num_workers

    def unregister(self, model: str, engine_version: str) -> None:
        self._must_be_up()
        self.calls.append(("unregister", engine_version))
        self.registered.pop((model, engine_version), None)
        name = f"{model}-{engine_version}.mar"
        self.stored.pop(name, None)
        if self.store_dir is not None:
            (self.store_dir / name).unlink(missing_ok=True)

    def worker_sockets(self) -> tuple[str, ...]:
        """A socket for each archive that serves; only its name is real."""
        return tuple(f"/run/fake/w/{prefix_of(*key)}9000.sock" for key, entry in sorted(self.registered.items()) if entry.num_workers)

    def infer(
        self, model: str, engine_version: str, body: bytes, headers: Mapping[str, str], timeout_s: float, *, worker: str | None = None
    ) -> tuple[int, bytes]:
        self._must_be_up()
        assert worker is None or worker in self.worker_sockets()
        entry = self.registered.get((model, engine_version))
        if entry is None:
            return 404, b'{"error": "model version not found"}'
        if not entry.num_workers or engine_version in self.failing:
            return 503, b'{"error": "no worker"}'
        if self.answer is not None:
            return self.answer(model, engine_version, body, headers)
        core = self.cores.get(entry.archive_name)
        if core is None:
            return 200, b"[]"
        answer = core.handle([({name.lower(): value for name, value in headers.items()}, body)])[0]
        return answer.status, answer.body

    def restart_empty(self) -> None:
        """What a restart of the node's process does: archives stay in the store, nothing is registered."""
        self.registered.clear()
        self.down = False

    def _entry(self, model: str, engine_version: str) -> _Registered:
        try:
            return self.registered[model, engine_version]
        except KeyError:
            raise NotFound(f"not registered on {self.name} ({model} {engine_version})") from None

    def _must_be_up(self) -> None:
        if self.down:
            raise Unavailable(f"node {self.name} does not answer")
