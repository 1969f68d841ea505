"""The processes of this machine, through psutil: who is alive, who belongs together, who holds a port.

A pid alone names nobody for long, so a process is a pid and the moment it was born.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_KILL_ROUNDS = 5
_KILL_WAIT_S = 2.0
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """One process, for as long as it lives.

    Attributes:
        birth_s: When it was born, in seconds since the machine booted: unlike a time of day, no clock change moves it.
    """

    pid: int
    birth_s: float


def identify(pid: int) -> Identity | None:
    """The process that has this pid now, or None. Zombies count as gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Identity(pid=pid, birth_s=round(process.create_time() - psutil.boot_time(), 2))
    except psutil.Error:
        return None


def is_alive(identity: Identity) -> bool:
    """Whether this very process still runs."""
    return identify(identity.pid) == identity


def tree(leader: Identity) -> list[psutil.Process]:
    """What is left of a session leader: itself, its descendants, and its session, also when the leader is gone.

    A descendant that left the session is found only while its parents live.
    """
    present = identify(leader.pid)
    if present is None and psutil.pid_exists(leader.pid):
        present = leader  # a zombie keeps its pid: nobody else can have it, and its session is still its own
    if present is not None and present != leader:
        return []  # The pid was given to somebody else, which the kernel does only when the whole session is gone.
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(leader.pid)
        found = {child.pid: child for child in (process, *process.children(recursive=True))}
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if pid not in found and os.getsid(pid) == leader.pid:
                found[pid] = psutil.Process(pid)
    return [process for process in found.values() if not _is_zombie(process)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def stop_tree(leader: Identity, timeout_s: float, child: subprocess.Popen[bytes] | None = None) -> list[int]:
    """SIGTERM to a session leader's process group and to its descendants; SIGKILL to what is left after `timeout_s`.

    Args:
        child: The leader, if this process started it; it is reaped.

    Returns:
        Pids that even SIGKILL did not end (in uninterruptible sleep); empty as a rule.
    """
    deadline = time.monotonic() + timeout_s
    processes = tree(leader)
    _signal(leader, processes, signal.SIGTERM)
    _wait(processes, child, deadline)
    for _ in range(_KILL_ROUNDS):  # more than once: a process may fork while we look
        survivors = tree(leader) or [process for process in processes if process.is_running() and not _is_zombie(process)]
        if not survivors:
            break
        _signal(leader, survivors, signal.SIGKILL)
        _wait(survivors, child, time.monotonic() + _KILL_WAIT_S)
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_KILL_WAIT_S)
    return [process.pid for process in processes if process.is_running() and not _is_zombie(process)]


def _signal(leader: Identity, processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    processes = list(processes)
    if any(_session(process) == leader.pid for process in processes):
        # As a group first: nobody can fork away from a signal that the whole group gets.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, number)
    for process in processes:
        if _group(process) != leader.pid:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


def _session(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(process.pid)
    return 0


def _group(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        return os.getpgid(process.pid)
    return 0


def _wait(processes: list[psutil.Process], child: subprocess.Popen[bytes] | None, deadline: float) -> None:
    if child is not None:  # psutil must not reap what Popen wants to reap
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
    # Not psutil.wait_procs: it waits for zombies too, and the first process of a container may never reap them.
    while any(process.is_running() and not _is_zombie(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who listens on a port; `pid` is None if it is another user's process, which this user cannot see."""

    pid: int | None
    name: str
    command: str
    session: int | None = None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid is not None else self.name


def bind_error(host: str, port: int) -> int:
    """The errno with which the system refuses a listener there; 0 if it accepts one."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the past do not count
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            return error.errno or errno.EADDRINUSE
    return 0


def port_owner(host: str, port: int) -> Owner | None:
    """The process that keeps a listener from being opened on this address, or None if the port is free."""
    if bind_error(host, port) != errno.EADDRINUSE:
        return None
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid is not None:
                with contextlib.suppress(psutil.Error, OSError):
                    process = psutil.Process(connection.pid)
                    return Owner(pid=process.pid, name=process.name(), command=" ".join(process.cmdline()), session=os.getsid(process.pid))
    return Owner(pid=None, name="a process of another user", command="")


def terminate(pid: int, timeout_s: float) -> bool:
    """SIGTERM to one process that is not ours to reap; whether it ended in time (or was gone already)."""
    identity = identify(pid)
    if identity is None:
        return True
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while is_alive(identity):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
