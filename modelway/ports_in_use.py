"""Whether the ports of the settings are free, and who has them if not."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from modelway.child_record import read_children
from modelway.processes import Owner, bind_error, port_owner
from modelway.settings import ENV_PREFIX, Settings
from registry.errors import ModelwayError, Unavailable, UsageError

__all__ = ["Owner", "PortState", "check_free", "look_at_ports", "port_owner"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PortState:
    """One port of the settings.

    Attributes:
        key: Its setting.
        ours: Whether a program of this home listens there.
        problem: Why the platform cannot listen there; None if it can, or does already.
    """

    key: str
    host: str
    port: int
    ours: bool
    problem: ModelwayError | None


def look_at_ports(settings: Settings, keys: Collection[str] | None = None) -> list[PortState]:
    """The state of every port that `up` would listen on.

    Args:
        keys: Only these, for example `{"gateway_port"}`; None for all.
    """
    sessions = {status.record.pid for status in read_children(settings.run_dir) if status.running}
    return [
        _look(key, host, port, frozenset(pid for pid in sessions if pid is not None))
        for key, (host, port) in settings.listeners().items()
        if keys is None or key in keys
    ]


def check_free(settings: Settings, keys: Collection[str] | None = None) -> None:
    """Return if every port can be listened on, or is by a program of this home that still runs.

    Raises:
        Unavailable: A port is in use; names its owner and the setting to change.
        UsageError: The address is not one of this machine, or the port needs privileges.
    """
    for state in look_at_ports(settings, keys):
        if state.problem is not None:
            raise state.problem


def _look(key: str, host: str, port: int, sessions: frozenset[int]) -> PortState:
    variable = f"{ENV_PREFIX}{key.upper()}"
    try:
        error = bind_error(host, port)
    except socket.gaierror as unknown:
        return _problem(key, host, port, UsageError(f"unknown host name ({host}: {unknown.strerror})", f"Set {_host_variable(key)}."))
    if error == 0:
        return PortState(key=key, host=host, port=port, ours=False, problem=None)
    if error != errno.EADDRINUSE:
        return _problem(key, host, port, _unusable(host, port, error, variable, _host_variable(key)))
    owner = port_owner(host, port)
    if owner is None:  # given back between the two looks
        return PortState(key=key, host=host, port=port, ours=False, problem=None)
    if owner.session in sessions:
        return PortState(key=key, host=host, port=port, ours=True, problem=None)
    return _problem(key, host, port, Unavailable(f"port {port} is in use by {owner}", f"Stop it or set {variable}."))


def _problem(key: str, host: str, port: int, problem: ModelwayError) -> PortState:
    return PortState(key=key, host=host, port=port, ours=False, problem=problem)


def _host_variable(key: str) -> str:
    return f"{ENV_PREFIX}{key.removesuffix('_port').upper()}_HOST"


def _unusable(host: str, port: int, error: int, port_variable: str, host_variable: str) -> UsageError:
    if error == errno.EADDRNOTAVAIL:
        return UsageError(f"not an address of this machine ({host})", f"Set {host_variable} to one, or to 0.0.0.0 for all.")
    if error == errno.EACCES:
        return UsageError(f"port {port} needs privileges", f"Set {port_variable} to 1024 or more.")
    return UsageError(f"cannot listen on {host}:{port} ({os.strerror(error)})", f"Set {host_variable} or {port_variable}.")
