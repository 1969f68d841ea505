"""A port in use is named with its owner and the setting to change."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelway.child_record import ChildRecord, ChildState, write_record
from modelway.ports_in_use import check_free, look_at_ports, port_owner
from modelway.processes import identify
from modelway.settings import Settings
from registry.errors import Unavailable, UsageError
from support.ports import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_the_owner_is_this_process(taken: int) -> None:
    owner = port_owner("127.0.0.1", taken)
    assert owner is not None
    assert owner.pid == os.getpid()
    assert "pytest" in owner.command
    assert str(owner) == f"{owner.name} (pid {os.getpid()})"


def test_a_listener_on_all_addresses_owns_the_port_too() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        owner = port_owner("127.0.0.1", listener.getsockname()[1])
    assert owner is not None
    assert owner.pid == os.getpid()


def test_a_free_port_has_no_owner() -> None:
    assert port_owner("127.0.0.1", free_port()) is None


def test_a_port_that_was_just_closed_is_free() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server does
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            pass
    assert port_owner("127.0.0.1", port) is None


def test_a_taken_port_is_refused_by_name(tmp_path: Path, taken: int) -> None:
    settings = Settings(home=tmp_path, gateway_port=taken)
    message = rf"port {taken} is in use by \S+ \(pid {os.getpid()}\)\. Stop it or set MODELWAY_GATEWAY_PORT\."
    with pytest.raises(Unavailable, match=message):
        check_free(settings, {"gateway_port"})
    check_free(settings, set())


def test_a_port_of_our_own_running_child_is_no_problem(tmp_path: Path, taken: int) -> None:
    settings = Settings(home=tmp_path, gateway_port=taken)
    settings.run_dir.mkdir()
    leader = identify(os.getsid(0))
    if leader is None:
        pytest.skip("the leader of this session is outside the container")
    record = ChildRecord(
        name="gateway",
        state=ChildState.READY,
        host=socket.gethostname(),
        pid=leader.pid,
        birth_s=leader.birth_s,
        argv_sha256="",
        log="",
        stop_timeout_s=1,
        owned_paths=(),
    )
    write_record(settings.run_dir, record)
    (state,) = look_at_ports(settings, {"gateway_port"})
    assert state.ours
    check_free(settings, {"gateway_port"})


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not an address of this machine \(192\.0\.2\.1\)\. Set MODELWAY_CONTROL_HOST"):
        check_free(Settings(home=tmp_path, control_host="192.0.2.1"), {"control_port"})


def test_an_unknown_host_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown host name \(no-such-host\.invalid: .*MODELWAY_MLFLOW_HOST"):
        check_free(Settings(home=tmp_path, mlflow_host="no-such-host.invalid"), {"mlflow_port"})
