"""Runs the platform's programs: starts them in order, restarts the dead, stops them without leaving anything behind.

Why our own (docs/adr/0002-own-supervisor.md): the programs must outlive a killed supervisor and be taken over by the
next one, because they are the data plane; supervisord, circus and honcho stop or forget their children instead.

A supervisor is driven by its caller: `start`, then `run` (or `tick` now and then), then `stop`. It has no threads.

Every program is a session of its own: Ctrl-C in a terminal reaches the supervisor only, and stopping reaches all of its
descendants. A program that was started a moment before its supervisor was killed, before its record was written, is not
taken over; its port is then reported as taken, with its pid.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from modelway.child_log import last_lines, rotate
from modelway.child_record import (
    ChildRecord,
    ChildState,
    ChildStatus,
    Locks,
    argv_sha256,
    read_children,
    read_record,
    remove_record,
    supervisors,
    write_record,
)
from modelway.processes import Identity, identify, is_alive, stop_tree
from registry.errors import ModelwayError, TimedOut, Unavailable
from serving.process import ProcessSpec

__all__ = ["Child", "ChildState", "ChildStatus", "RestartPolicy", "Supervisor", "read_children", "stop_orphans", "supervisors"]

_TICK_S = 0.1
_ROTATE_EVERY_S = 10.0
_STRAGGLER_TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """How long a program that died waits for its next start.

    Attributes:
        first_delay_s: Delay after the first death.
        factor: What each further death multiplies it by.
        max_delay_s: Longest delay.
        reset_after_s: A program that was ready for this long has its deaths forgiven.
    """

    first_delay_s: float = 0.5
    factor: float = 2.0
    max_delay_s: float = 30.0
    reset_after_s: float = 60.0

    def delay_s(self, num_crashes: int) -> float:
        """Delay after the n-th death in a row: 0.5, 1, 2, 4, ... 30 by default."""
        # The exponent is bounded: a float power overflows after some thousand deaths.
        return float(min(self.max_delay_s, self.first_delay_s * self.factor ** min(num_crashes - 1, 64)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A program and what its supervisor must know about it.

    Attributes:
        ready: Whether it does its work now; asked often, so it answers within a second. An exception means no.
        after: Names of children that must be ready before it is started.
        ready_timeout_s: Seconds after which a start that did not become ready counts as a death.
        prepare: Called before every start, restarts included: writes its files, makes its directories.
        drain: Called before it is told to stop; returns when nothing is in flight any more.
        tend: Called every few seconds while it is ready, to keep its files small; what it raises is told and tried again.
    """

    spec: ProcessSpec
    ready: Callable[[], bool]
    after: tuple[str, ...] = ()
    ready_timeout_s: float = 60.0
    prepare: Callable[[], None] | None = None
    drain: Callable[[], None] | None = None
    tend: Callable[[], object] | None = None


@dataclass(slots=True)
class _Slot:
    """What changes about a child."""

    child: Child
    state: ChildState = ChildState.WAITING
    identity: Identity | None = None
    popen: subprocess.Popen[bytes] | None = None  # None also for a child that was taken over
    started_at: str = ""
    since_s: float = 0.0  # when it entered the state, by the supervisor's clock
    retry_at_s: float = 0.0
    num_crashes: int = 0
    last_exit: str = ""

    @property
    def name(self) -> str:
        return self.child.spec.name

    @property
    def runs(self) -> bool:
        if self.popen is not None:
            return self.popen.poll() is None
        return self.identity is not None and is_alive(self.identity)

    def record(self) -> ChildRecord:
        spec = self.child.spec
        return ChildRecord(
            name=spec.name,
            state=self.state,
            host=socket.gethostname(),
            pid=self.identity.pid if self.identity else None,
            birth_s=self.identity.birth_s if self.identity else 0.0,
            argv_sha256=argv_sha256(spec.argv),
            log=str(spec.log),
            stop_timeout_s=spec.stop_timeout_s,
            owned_paths=tuple(map(str, spec.owned_paths)),
            started_at=self.started_at,
            num_crashes=self.num_crashes,
            last_exit=self.last_exit,
        )


class Supervisor:
    """Runs a set of programs. Use it as a context manager: entering takes the locks, leaving stops everything."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        run_dir: Path,
        policy: RestartPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            children: In the order of starting; they are stopped in the opposite order.
            run_dir: Directory of records and locks; exists.
            clock: Seconds, for delays and timeouts.
            tell: Takes one line for every start, death and stop.
        """
        names = [child.spec.name for child in children]
        assert len(set(names)) == len(names), f"names must be unique: {names}"
        for position, child in enumerate(children):
            assert set(child.after) <= set(names[:position]), f"{child.spec.name} waits for a child that is not before it"
        self._slots = [_Slot(child) for child in children]
        self._run_dir = run_dir
        self._policy = policy or RestartPolicy()
        self._clock = clock
        self._tell = tell
        # Not a threading.Event: that can deadlock when a signal handler sets what the same thread waits for.
        self._stop_requested = False
        self._rotated_at_s = clock()
        self._locks = Locks(run_dir, names)

    def __enter__(self) -> Self:
        """Take the locks, and take over what a killed supervisor left running.

        Raises:
            Conflict: Another supervisor runs one of these children; names its pid.
        """
        self._locks.acquire()
        try:
            for slot in self._slots:
                self._adopt(slot)
        except BaseException:
            self._locks.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._locks.release()

    def start(self, timeout_s: float = 120.0, max_crashes: int = 2) -> None:
        """Start all children and wait until each is ready, or until a stop is requested.

        Raises:
            Unavailable: A child died more than `max_crashes` times; carries the last lines of its log.
            TimedOut: Not all were ready in time; names the ones that were not.
        """
        deadline = self._clock() + timeout_s
        while not self._stop_requested:
            self.tick()
            for slot in self._slots:
                if slot.num_crashes > max_crashes:
                    raise Unavailable(f"{slot.name} does not start ({slot.last_exit})", _log_hint(slot.child.spec.log))
            if all(slot.state is ChildState.READY for slot in self._slots):
                return
            if self._clock() > deadline:
                late = [slot for slot in self._slots if slot.state is not ChildState.READY]
                names = ", ".join(f"{slot.name}: {slot.state}" for slot in late)
                raise TimedOut(f"not ready after {timeout_s:g} s ({names})", _log_hint(late[0].child.spec.log))
            time.sleep(_TICK_S)

    def run(self) -> None:
        """Look after the children until `request_stop` is called."""
        while not self._stop_requested:
            self.tick()
            time.sleep(_TICK_S)

    def request_stop(self) -> None:
        """Make `start` or `run` return. May be called from a signal handler or another thread."""
        self._stop_requested = True

    def tick(self) -> None:
        """Look at every child once, and do what its state asks for. Does not wait."""
        now = self._clock()
        for slot in self._slots:
            if slot.state in (ChildState.STARTING, ChildState.READY) and not slot.runs:
                self._died(slot, _exit_text(slot.popen))
            elif slot.state is ChildState.STARTING:
                if _is_ready(slot.child):
                    self._enter(slot, ChildState.READY)
                    self._tell(f"{slot.name} is ready (pid {slot.identity.pid if slot.identity else '?'})")
                elif now - slot.since_s > slot.child.ready_timeout_s:
                    self._died(slot, f"not ready after {slot.child.ready_timeout_s:g} s")
            elif slot.state is ChildState.READY and slot.num_crashes and now - slot.since_s > self._policy.reset_after_s:
                slot.num_crashes = 0
                self._enter(slot, ChildState.READY)
            elif slot.state is ChildState.WAITING or (slot.state is ChildState.BACKOFF and now >= slot.retry_at_s):
                states = {other.name: other.state for other in self._slots}
                if all(states[name] is ChildState.READY for name in slot.child.after):
                    self._launch(slot)
        if now - self._rotated_at_s > _ROTATE_EVERY_S:
            self._rotated_at_s = now
            for slot in self._slots:
                self._tend(slot)

    def _tend(self, slot: _Slot) -> None:
        rotate(slot.child.spec.log)
        if slot.child.tend is not None and slot.state is ChildState.READY:
            try:
                slot.child.tend()
            except ModelwayError as error:
                self._tell(f"{slot.name}: {error}")

    def statuses(self) -> list[ChildRecord]:
        """The children as they are now, in order."""
        return [slot.record() for slot in self._slots]

    def stop(self) -> None:
        """Stop all children, last started first: drain, SIGTERM, SIGKILL after a while, remove what they owned.

        Raises:
            TimedOut: A process could not be killed; raised after all others were stopped.
        """
        left: list[str] = []
        for slot in reversed(self._slots):
            if slot.identity is not None:
                left += self._stop(slot)
            _remove_owned(slot.child.spec.owned_paths, keep_directories=False)
            slot.state = ChildState.STOPPED
            remove_record(self._run_dir, slot.name)
        if left:
            raise TimedOut(f"some processes do not end ({', '.join(left)})", "Look at what they wait for: ps -o pid,stat,wchan,args.")

    def _stop(self, slot: _Slot) -> list[str]:
        assert slot.identity is not None
        if slot.child.drain is not None and slot.runs:
            try:
                slot.child.drain()
            except Exception as error:  # a drain that fails must not keep the platform running
                self._tell(f"{slot.name} was not drained ({error})")
        left = stop_tree(slot.identity, slot.child.spec.stop_timeout_s, slot.popen)
        self._tell(f"{slot.name} stopped")
        slot.identity, slot.popen = None, None
        return [f"{slot.name} pid {pid}" for pid in left]

    def _enter(self, slot: _Slot, state: ChildState) -> None:
        slot.state = state
        slot.since_s = self._clock()
        write_record(self._run_dir, slot.record())

    def _adopt(self, slot: _Slot) -> None:
        """Take over what the record names: go on with it, or end it if it is not what is wanted now."""
        record = read_record(self._run_dir, slot.name)
        if record is None:
            return
        identity = record.identity
        if identity is not None and record.argv_sha256 == argv_sha256(slot.child.spec.argv) and is_alive(identity):
            slot.identity = identity
            slot.started_at, slot.num_crashes, slot.last_exit = record.started_at, record.num_crashes, record.last_exit
            self._enter(slot, ChildState.STARTING)
            self._tell(f"{slot.name} still runs (pid {identity.pid}): taken over")
        else:  # also what a container that is gone left in the home: we hold the lock, so nobody uses it
            _end(record)

    def _launch(self, slot: _Slot) -> None:
        spec = slot.child.spec
        try:
            if slot.child.prepare is not None:
                slot.child.prepare()
            spec.cwd.mkdir(parents=True, exist_ok=True)
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            rotate(spec.log)
            with spec.log.open("ab") as log:
                slot.popen = subprocess.Popen(
                    spec.argv,
                    cwd=spec.cwd,
                    env=dict(spec.env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except (OSError, ModelwayError) as error:
            self._died(slot, f"cannot start {spec.argv[0]}: {error}")
            return
        # A child that is dead already is a zombie until it is reaped, so its pid is still its own.
        slot.identity = identify(slot.popen.pid) or Identity(pid=slot.popen.pid, birth_s=0.0)
        slot.started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._enter(slot, ChildState.STARTING)
        self._tell(f"{slot.name} started (pid {slot.popen.pid})")

    def _died(self, slot: _Slot, how: str) -> None:
        """End what is left of it, and plan its next start."""
        if slot.identity is not None:
            stop_tree(slot.identity, _STRAGGLER_TIMEOUT_S, slot.popen)
        _remove_owned(slot.child.spec.owned_paths, keep_directories=True)
        slot.identity, slot.popen = None, None
        slot.num_crashes += 1
        slot.last_exit = how
        delay_s = self._policy.delay_s(slot.num_crashes)
        slot.retry_at_s = self._clock() + delay_s
        self._enter(slot, ChildState.BACKOFF)
        self._tell(f"{slot.name} died ({how}); starts again in {delay_s:g} s")


def stop_orphans(run_dir: Path) -> list[str]:
    """Stop the recorded children that no supervisor looks after. Returns the names of those that ran.

    Raises:
        TimedOut: A process could not be killed.
    """
    stopped = []
    for status in read_children(run_dir):
        if status.supervisor_pid is None and (status.record.identity is not None or status.record.pid is None):
            if status.running:
                stopped.append(status.record.name)
            if left := _end(status.record):
                raise TimedOut(f"{status.record.name} does not end (pid {', '.join(map(str, left))})", "Look at what it waits for.")
            remove_record(run_dir, status.record.name)
    return stopped


def _end(record: ChildRecord) -> list[int]:
    left: list[int] = []
    if record.identity is not None:
        left = stop_tree(record.identity, record.stop_timeout_s)
    _remove_owned(map(Path, record.owned_paths), keep_directories=False)
    return left


def _remove_owned(paths: Iterable[Path], *, keep_directories: bool) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            for entry in path.iterdir() if keep_directories else ():
                _remove(entry)
            if not keep_directories:
                _remove(path)
        else:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _is_ready(child: Child) -> bool:
    try:
        return child.ready()
    except Exception:  # what a readiness check raises is its way to say no
        return False


def _exit_text(popen: subprocess.Popen[bytes] | None) -> str:
    code = popen.returncode if popen is not None else None
    if code is None:
        return "exit status unknown"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


def _log_hint(log: Path) -> str:
    lines = last_lines(log, 5)
    return f"Its log ({log}) ends with: {' | '.join(lines)}" if lines else f"Its log is empty ({log})."
