"""What is written about a child process, so that others can see it and a new supervisor can take it over.

    run/<name>.json   the child: pid, birth, argv digest, state; removed when it was stopped
    run/<name>.lock   held (flock) by the supervisor that is responsible for the child; holds its pid

Locks are one per child, not one per home: `up --component gateway` beside `up --component node` is two supervisors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from modelway.child_log import last_lines
from modelway.processes import Identity, is_alive
from registry.bundle import write_durably
from registry.errors import Conflict

# A reader that looks whether a lock is held holds it for an instant.
_LOCK_ATTEMPTS = 20
_LOCK_RETRY_S = 0.02


class ChildState(StrEnum):
    """Where a child stands."""

    WAITING = "waiting"  # for another child to be ready
    STARTING = "starting"  # runs, not ready yet
    READY = "ready"
    BACKOFF = "backoff"  # died; started again after a delay
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildRecord:
    """One child as its supervisor last saw it.

    Attributes:
        host: Name of the machine or container that the pid belongs to.
        pid: Also the id of its process group and session; None while it does not run.
        argv_sha256: Digest of program and arguments: a child that was started with others is replaced.
        started_at: ISO time of the last start; empty if never.
        num_crashes: Deaths since it last stayed up.
        last_exit: How it last died, in words; empty if it did not.
    """

    name: str
    state: ChildState
    host: str
    pid: int | None
    birth_s: float
    argv_sha256: str
    log: str
    stop_timeout_s: float
    owned_paths: tuple[str, ...]
    started_at: str = ""
    num_crashes: int = 0
    last_exit: str = ""

    @property
    def identity(self) -> Identity | None:
        """The process, if the record names one of this machine."""
        if self.pid is None or self.host != socket.gethostname():
            return None
        return Identity(pid=self.pid, birth_s=self.birth_s)

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {**dataclasses.asdict(self), "pgid": self.pid}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildStatus:
    """What a reader sees of one child.

    Attributes:
        running: Whether its process lives on this machine.
        supervisor_pid: The process that looks after it; None if nobody does (it was killed, or is of another container).
        log_tail: Last lines of its log.
    """

    record: ChildRecord
    running: bool
    supervisor_pid: int | None
    log_tail: tuple[str, ...]


def argv_sha256(argv: Sequence[str]) -> str:
    """Digest of program and arguments."""
    return hashlib.sha256("\0".join(argv).encode()).hexdigest()


def write_record(run_dir: Path, record: ChildRecord) -> None:
    """Store the record, atomically."""
    write_durably(run_dir / f"{record.name}.json", json.dumps(record.to_json(), indent=1).encode())


def remove_record(run_dir: Path, name: str) -> None:
    """Forget a child."""
    (run_dir / f"{name}.json").unlink(missing_ok=True)


def read_record(run_dir: Path, name: str) -> ChildRecord | None:
    """The record of one child, or None if there is none that can be read."""
    try:
        data = json.loads((run_dir / f"{name}.json").read_bytes())
        data.pop("pgid")
        return ChildRecord(**{**data, "state": ChildState(data["state"]), "owned_paths": tuple(data["owned_paths"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_children(run_dir: Path, *, num_log_lines: int = 10) -> list[ChildStatus]:
    """All recorded children of a home, by name. Needs no supervisor, and changes nothing."""
    statuses = []
    for path in sorted(run_dir.glob("*.json")):
        record = read_record(run_dir, path.stem)
        if record is not None:
            statuses.append(
                ChildStatus(
                    record=record,
                    running=record.identity is not None and is_alive(record.identity),
                    supervisor_pid=lock_holder(run_dir, record.name),
                    log_tail=last_lines(Path(record.log), num_log_lines),
                )
            )
    return statuses


def _lock_path(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name}.lock"


def lock_holder(run_dir: Path, name: str) -> int | None:
    """Pid of the supervisor that is responsible for a child now, or None. 0 if it did not say yet."""
    try:
        with _lock_path(run_dir, name).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
    except (OSError, ValueError):
        pass
    return None


def supervisors(run_dir: Path) -> dict[int, tuple[str, ...]]:
    """Pid -> names of the children, for every supervisor of the home that runs now."""
    found: dict[int, tuple[str, ...]] = {}
    for path in sorted(run_dir.glob("*.lock")):
        if (pid := lock_holder(run_dir, path.stem)) is not None:
            found[pid] = (*found.get(pid, ()), path.stem)
    return found


class Locks:
    """The locks of a set of children. They end with the process, however it ends."""

    def __init__(self, run_dir: Path, names: Iterable[str]) -> None:
        self._run_dir = run_dir
        self._names = sorted(names)  # one order for everybody
        self._files: list[IO[str]] = []

    def acquire(self) -> None:
        """Take all of them. Raises Conflict, with none taken, if another supervisor has one of them."""
        for name in self._names:
            if not self._acquire(name):
                holder = lock_holder(self._run_dir, name)
                self.release()
                raise Conflict(f"already running ({name}, by pid {holder or 'unknown'})", "Stop it first: modelway down.")

    def _acquire(self, name: str) -> bool:
        # Kept open, and so locked, until release(); never inherited by a child.
        file = os.fdopen(os.open(_lock_path(self._run_dir, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        for attempt in range(_LOCK_ATTEMPTS):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate()
                file.write(str(os.getpid()))
                file.flush()
                self._files.append(file)
                return True
            if attempt + 1 < _LOCK_ATTEMPTS:
                time.sleep(_LOCK_RETRY_S)
        file.close()
        return False

    def release(self) -> None:
        """Give all of them back. The files stay: removing one would let two supervisors lock two files of one name."""
        for file in self._files:
            file.close()
        self._files.clear()
