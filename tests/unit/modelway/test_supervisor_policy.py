"""The supervisor's values: delays, records, logs, locks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from modelway.child_log import last_lines, rotate
from modelway.child_record import (
    ChildRecord,
    ChildState,
    Locks,
    argv_sha256,
    lock_holder,
    read_children,
    read_record,
    supervisors,
    write_record,
)
from modelway.supervisor import Child, RestartPolicy, Supervisor
from registry.errors import Conflict
from serving.process import ProcessSpec

RECORD = ChildRecord(
    name="node-0",
    state=ChildState.READY,
    host="here",
    pid=7,
    birth_s=12.34,
    argv_sha256=argv_sha256(("java", "-jar")),
    log="/logs/node-0.log",
    stop_timeout_s=10.0,
    owned_paths=("/run/a.sock",),
    started_at="2026-01-02T03:04:05+00:00",
    num_crashes=2,
    last_exit="killed by SIGKILL",
)


@pytest.mark.parametrize(("num_crashes", "delay_s"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (100_000, 30)])
def test_delays_double_up_to_a_limit(num_crashes: int, delay_s: float) -> None:
    assert RestartPolicy().delay_s(num_crashes) == delay_s


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path, "node-0") == RECORD
    assert json.loads((tmp_path / "node-0.json").read_text())["pgid"] == 7
    assert [status.running for status in read_children(tmp_path)] == [False], "it is of another machine"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"name": "node-0"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node-0.json").write_bytes(content)
    assert read_record(tmp_path, "node-0") is None
    assert read_children(tmp_path) == []


def test_the_digest_tells_arguments_apart() -> None:
    assert argv_sha256(("a b", "c")) != argv_sha256(("a", "b c"))
    assert argv_sha256(("ab",)) != argv_sha256(("a", "b"))


def test_logs_are_cut_in_place_when_they_are_large(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    rotate(log)
    with log.open("ab") as child:
        child.write(b"old " * 100)
        child.flush()
        rotate(log, max_bytes=1000)
        assert log.stat().st_size == 400
        rotate(log, max_bytes=100)
        child.write(b"new")
        child.flush()
    assert log.read_bytes() == b"new"
    assert (tmp_path / "x.log.1").stat().st_size == 400


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == ()
    log.write_bytes(b"x" * 100_000 + b"\n" + b"\n".join(b"line %d" % n for n in range(20)) + b"\n\n\xff end\n")
    assert last_lines(log, 3) == ("line 18", "line 19", "\N{REPLACEMENT CHARACTER} end")


def test_locks_are_all_or_none_and_end_with_release(tmp_path: Path) -> None:
    first, second = Locks(tmp_path, ["b", "c"]), Locks(tmp_path, ["a", "b"])
    first.acquire()
    with pytest.raises(Conflict, match=rf"already running \(b, by pid {os.getpid()}\)") as raised:
        second.acquire()
    assert raised.value.exit_code == 5
    assert supervisors(tmp_path) == {os.getpid(): ("b", "c")}
    assert lock_holder(tmp_path, "a") is None
    first.release()
    assert supervisors(tmp_path) == {}
    second.acquire()
    second.release()


def test_a_pid_of_an_earlier_holder_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "gateway.lock").write_text("1")
    assert lock_holder(tmp_path, "gateway") is None
    locks = Locks(tmp_path, ["gateway"])
    locks.acquire()
    assert lock_holder(tmp_path, "gateway") == os.getpid()
    locks.release()


def test_a_child_can_wait_only_for_one_before_it(tmp_path: Path) -> None:
    spec = ProcessSpec(name="a", argv=("true",), cwd=tmp_path, env={}, log=tmp_path / "log")
    with pytest.raises(AssertionError, match="waits for a child that is not before it"):
        Supervisor([Child(spec=spec, ready=bool, after=("b",)), Child(spec=replace(spec, name="b"), ready=bool)], run_dir=tmp_path)
