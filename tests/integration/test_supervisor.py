"""The supervisor with real processes: small Python programs that behave well or badly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from modelway.child_record import lock_holder, read_record
from modelway.processes import identify, is_alive
from modelway.supervisor import Child, ChildState, RestartPolicy, Supervisor, read_children, stop_orphans, supervisors
from registry.errors import Conflict, TimedOut, Unavailable
from serving.process import ProcessSpec
from support.polling import wait_until

pytestmark = pytest.mark.integration

SLEEPER = "import signal, sys; print('up', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
QUICK = RestartPolicy(first_delay_s=0.05, max_delay_s=0.2)


class Clock:
    """Stands still until it is told to move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Makes children; ends whatever is left of them after the test."""
    (tmp_path / "run").mkdir()
    names: list[str] = []

    def make_child(name: str, code: str, **changes: object) -> Child:
        log = tmp_path / f"{name}.log"
        spec_changes = {key: changes.pop(key) for key in ("stop_timeout_s", "owned_paths") if key in changes}
        spec = ProcessSpec(
            name=name,
            argv=(sys.executable, "-c", textwrap.dedent(code), str(tmp_path)),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            log=log,
            **spec_changes,  # type: ignore[arg-type]
        )
        names.append(name)
        changes.setdefault("ready", lambda: log.exists() and "up" in log.read_text())
        return Child(spec=spec, **changes)  # type: ignore[arg-type]

    yield make_child
    left = [status.record.name for status in read_children(tmp_path / "run") if status.running]
    stop_orphans(tmp_path / "run")
    assert not left, f"the test left children running: {left}"


def pids_with(marker: Path) -> list[int]:
    """Processes, other than this one, that have the path among their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(marker) in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def test_children_start_in_order_and_stop_in_reverse(tmp_path: Path, make: Callable[..., Child]) -> None:
    lines: list[str] = []
    children = [make("first", SLEEPER), make("second", SLEEPER, after=("first",)), make("third", SLEEPER, after=("second",))]
    with Supervisor(children, run_dir=tmp_path / "run", tell=lines.append) as supervisor:
        supervisor.start(20)
        assert [record.state for record in supervisor.statuses()] == [ChildState.READY] * 3
        assert all(status.running and status.supervisor_pid == os.getpid() for status in read_children(tmp_path / "run"))
    words = [" ".join(line.split()[:3]).split(" (")[0] for line in lines]
    ready_then_started = ["first started", "first is ready", "second started", "second is ready", "third started", "third is ready"]
    assert words == [*ready_then_started, "third stopped", "second stopped", "first stopped"]
    assert pids_with(tmp_path) == []
    assert read_children(tmp_path / "run") == []
    assert supervisors(tmp_path / "run") == {}


def test_a_child_that_ignores_sigterm_is_killed_after_its_timeout(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("deaf", DEAF, stop_timeout_s=0.2)
    with Supervisor([child], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        (pid,) = pids_with(tmp_path)
    assert not psutil.pid_exists(pid)


def test_a_child_that_heeds_sigterm_may_finish_its_work(tmp_path: Path, make: Callable[..., Child]) -> None:
    code = """
        import pathlib, signal, sys, time
        def finish(*_):
            time.sleep(0.3)
            pathlib.Path(sys.argv[1], "finished").touch()
            sys.exit(0)
        signal.signal(signal.SIGTERM, finish)
        print("up", flush=True)
        while True: signal.pause()
    """
    with Supervisor([make("polite", code)], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
    assert (tmp_path / "finished").exists()


GRANDCHILDREN = """
    import signal, subprocess, sys, time
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    children = [
        subprocess.Popen([sys.executable, "-c", deaf, sys.argv[1]], stdout=subprocess.PIPE, start_new_session=session)
        for session in (False, True)
    ]
    for child in children: child.stdout.readline()
    print("up", flush=True)
    signal.pause()
"""


def test_grandchildren_are_ended_also_deaf_ones_and_ones_with_a_session_of_their_own(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("parent", GRANDCHILDREN, stop_timeout_s=0.3)
    with Supervisor([child], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        assert len(pids_with(tmp_path)) == 3
    assert pids_with(tmp_path) == []


def test_workers_that_a_dead_child_left_are_ended_before_it_is_started_again(tmp_path: Path, make: Callable[..., Child]) -> None:
    code = """
        import os, signal, subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]])
        print("up", flush=True)
        signal.pause()
    """
    child = make("parent", code)
    with Supervisor([child], run_dir=tmp_path / "run", policy=QUICK) as supervisor:
        supervisor.start(20)
        before = set(pids_with(tmp_path))
        leader = read_children(tmp_path / "run")[0].record.pid
        assert leader is not None
        os.kill(leader, signal.SIGKILL)
        supervisor.tick()
        wait_until(lambda: supervisor.tick() or len(set(pids_with(tmp_path)) - before) == 2, what="the restart")
        assert not before & set(pids_with(tmp_path))
        (record,) = supervisor.statuses()
        assert (record.num_crashes, record.last_exit) == (1, "killed by SIGKILL")


def test_a_crashing_child_is_restarted_with_growing_delays_and_its_log_is_shown(tmp_path: Path, make: Callable[..., Child]) -> None:
    clock = Clock()
    child = make("crashing", "import sys; print('no such model', flush=True); sys.exit(3)", ready=lambda: False)
    policy = RestartPolicy(first_delay_s=10, factor=2, max_delay_s=30)
    with Supervisor([child], run_dir=tmp_path / "run", policy=policy, clock=clock) as supervisor:
        for num_crashes, delay_s in ((1, 10), (2, 20), (3, 30), (4, 30)):
            wait_until(lambda n=num_crashes: supervisor.tick() or supervisor.statuses()[0].num_crashes == n, what="the crash")
            clock.now += delay_s - 0.1
            supervisor.tick()
            assert supervisor.statuses()[0].state is ChildState.BACKOFF, "started again too early"
            clock.now += 0.2
        (status,) = read_children(tmp_path / "run")
        assert status.record.last_exit == "exit status 3"
        assert status.record.num_crashes == 4
        assert status.log_tail[-1] == "no such model"
        assert not status.running


def test_deaths_are_forgiven_after_a_while(tmp_path: Path, make: Callable[..., Child]) -> None:
    clock = Clock()
    with Supervisor([make("once", SLEEPER)], run_dir=tmp_path / "run", clock=clock) as supervisor:
        supervisor.start(20)
        pid = supervisor.statuses()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: supervisor.tick() or supervisor.statuses()[0].num_crashes == 1)
        clock.now += 1
        wait_until(lambda: supervisor.tick() or supervisor.statuses()[0].state is ChildState.READY)
        clock.now += 59
        supervisor.tick()
        assert supervisor.statuses()[0].num_crashes == 1
        clock.now += 2
        supervisor.tick()
        assert supervisor.statuses()[0].num_crashes == 0


def test_a_child_that_does_not_become_ready_is_started_again(tmp_path: Path, make: Callable[..., Child]) -> None:
    clock = Clock()
    child = make("never", SLEEPER, ready=lambda: False, ready_timeout_s=5)
    with Supervisor([child], run_dir=tmp_path / "run", clock=clock) as supervisor:
        supervisor.tick()
        clock.now = 6
        supervisor.tick()
        (record,) = supervisor.statuses()
        assert (record.state, record.last_exit) == (ChildState.BACKOFF, "not ready after 5 s")
        assert pids_with(tmp_path) == []


def test_start_gives_up_on_a_child_that_keeps_dying_and_stops_the_others(tmp_path: Path, make: Callable[..., Child]) -> None:
    children = [make("good", SLEEPER), make("bad", "import sys; sys.exit('port taken')", ready=lambda: False)]
    with (
        pytest.raises(Unavailable, match=r"bad does not start \(exit status 1\)\. Its log .* ends with: port taken"),
        Supervisor(children, run_dir=tmp_path / "run", policy=QUICK) as supervisor,
    ):
        supervisor.start(20)
    assert pids_with(tmp_path) == []


def test_start_names_what_was_not_ready_in_time(tmp_path: Path, make: Callable[..., Child]) -> None:
    children = [make("slow", SLEEPER, ready=lambda: False), make("later", SLEEPER, after=("slow",))]
    with (
        pytest.raises(TimedOut, match=r"not ready after 0\.5 s \(slow: starting, later: waiting\)"),
        Supervisor(children, run_dir=tmp_path / "run") as supervisor,
    ):
        supervisor.start(0.5)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("absent", SLEEPER)
    spec = ProcessSpec(name="absent", argv=("/no/such/program",), cwd=tmp_path, env={}, log=child.spec.log)
    with (
        pytest.raises(Unavailable, match=r"absent does not start .cannot start /no/such/program"),
        Supervisor([Child(spec=spec, ready=lambda: True)], run_dir=tmp_path / "run", policy=QUICK) as supervisor,
    ):
        supervisor.start(20)


def test_owned_paths_are_removed_and_nothing_beside_them(tmp_path: Path, make: Callable[..., Child]) -> None:
    owned, link_target = tmp_path / "work", tmp_path / "precious"
    owned.mkdir()
    (owned / "unpacked").mkdir()
    link_target.mkdir()
    (link_target / "file").touch()
    (tmp_path / "link").symlink_to(link_target)
    code = """
        import pathlib, signal, socket, sys
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(pathlib.Path(sys.argv[1], "own.sock")))
        print("up", flush=True)
        signal.pause()
    """
    child = make("owner", code, owned_paths=(tmp_path / "own.sock", owned, tmp_path / "link", tmp_path / "never-made"))
    with Supervisor([child], run_dir=tmp_path / "run", policy=QUICK) as supervisor:
        supervisor.start(20)
        assert (tmp_path / "own.sock").is_socket()
        pid = supervisor.statuses()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # Restarting needs the stale socket gone: binding to an existing path fails.
        wait_until(lambda: supervisor.tick() or supervisor.statuses()[0].pid not in (None, pid))
        wait_until(lambda: supervisor.tick() or supervisor.statuses()[0].state is ChildState.READY)
        assert owned.is_dir(), "a directory is emptied, not removed, as long as the child is started again"
        assert list(owned.iterdir()) == []
    assert not (tmp_path / "own.sock").exists()
    assert not owned.exists()
    assert not (tmp_path / "link").is_symlink()
    assert (link_target / "file").exists()


def test_prepare_runs_before_each_start_and_drain_before_the_stop(tmp_path: Path, make: Callable[..., Child]) -> None:
    calls: list[str] = []
    alive: list[bool] = []

    def drain() -> None:
        calls.append("drain")
        alive.append(bool(pids_with(tmp_path)))
        raise RuntimeError("the gateway does not answer")

    with Supervisor(
        [make("child", SLEEPER, prepare=lambda: calls.append("prepare"), drain=drain)], run_dir=tmp_path / "run", policy=QUICK
    ) as supervisor:
        supervisor.start(20)
        pid = supervisor.statuses()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: supervisor.tick() or supervisor.statuses()[0].pid not in (None, pid))
    assert calls == ["prepare", "prepare", "drain"]
    assert alive == [True]
    assert pids_with(tmp_path) == []


def test_only_one_supervisor_per_child(tmp_path: Path, make: Callable[..., Child]) -> None:
    with Supervisor([make("a", SLEEPER), make("b", SLEEPER)], run_dir=tmp_path / "run"):
        with (
            pytest.raises(Conflict, match=rf"already running \(b, by pid {os.getpid()}\)"),
            Supervisor([make("c", SLEEPER), make("b", SLEEPER)], run_dir=tmp_path / "run"),
        ):
            pass
        assert lock_holder(tmp_path / "run", "c") is None, "a refused supervisor keeps no lock"
        with Supervisor([make("c", SLEEPER)], run_dir=tmp_path / "run"):
            assert supervisors(tmp_path / "run") == {os.getpid(): ("a", "b", "c")}


SUPERVISOR_PROGRAM = """
import sys
from pathlib import Path
from modelway.supervisor import Child, Supervisor
from serving.process import ProcessSpec

root = Path(sys.argv[1])
spec = ProcessSpec(name="child", argv=tuple(sys.argv[2:]), cwd=root, env={}, log=root / "child.log")
with Supervisor([Child(spec=spec, ready=lambda: "up" in spec.log.read_text())], run_dir=root / "run") as supervisor:
    supervisor.start(20)
    print("ready", flush=True)
    supervisor.run()
"""


def killed_supervisor(tmp_path: Path, child: Child) -> int:
    """Run a supervisor in a process of its own, kill it with SIGKILL once its child is ready, return the child's pid."""
    argv = (sys.executable, "-c", SUPERVISOR_PROGRAM, str(tmp_path), *child.spec.argv)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"ready\n"
        record = read_record(tmp_path / "run", "child")
        process.kill()
    assert record is not None
    assert record.pid is not None
    return record.pid


def test_a_child_outlives_a_killed_supervisor_and_is_taken_over_by_the_next(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("child", SLEEPER)
    pid = killed_supervisor(tmp_path, child)
    (status,) = read_children(tmp_path / "run")
    assert (status.running, status.supervisor_pid) == (True, None)
    lines: list[str] = []
    with Supervisor([child], run_dir=tmp_path / "run", policy=QUICK, tell=lines.append) as supervisor:
        supervisor.start(20)
        assert supervisor.statuses()[0].pid == pid
        assert lines[0] == f"child still runs (pid {pid}): taken over"
        assert pids_with(tmp_path) == [pid]
        # It is looked after like any other: restarted when it dies.
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: supervisor.tick() or supervisor.statuses()[0].pid not in (None, pid))
        assert supervisor.statuses()[0].last_exit == "exit status unknown"
    assert pids_with(tmp_path) == []


def test_a_child_that_was_taken_over_is_stopped_like_any_other(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("child", GRANDCHILDREN, stop_timeout_s=0.3)
    killed_supervisor(tmp_path, child)
    assert len(pids_with(tmp_path)) == 3
    with Supervisor([child], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
    assert pids_with(tmp_path) == []


def test_a_child_with_other_arguments_is_replaced(tmp_path: Path, make: Callable[..., Child]) -> None:
    pid = killed_supervisor(tmp_path, make("child", SLEEPER))
    with Supervisor([make("child", SLEEPER + "  # changed")], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        assert supervisor.statuses()[0].pid != pid
        assert pids_with(tmp_path) == [supervisor.statuses()[0].pid]


def test_a_pid_that_was_given_to_another_process_is_left_alone(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("child", SLEEPER)
    innocent = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    try:
        record = tmp_path / "run" / "child.json"
        pid = killed_supervisor(tmp_path, child)
        stop_orphans_record = record.read_text()
        stop_orphans(tmp_path / "run")
        record.write_text(stop_orphans_record.replace(f'"pid": {pid}', f'"pid": {innocent.pid}'))
        with Supervisor([child], run_dir=tmp_path / "run") as supervisor:
            supervisor.start(20)
            assert supervisor.statuses()[0].pid != innocent.pid
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_children_without_a_supervisor_can_be_stopped(tmp_path: Path, make: Callable[..., Child]) -> None:
    pid = killed_supervisor(tmp_path, make("child", SLEEPER))
    identity = identify(pid)
    assert identity is not None
    with Supervisor([make("other", SLEEPER)], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        assert stop_orphans(tmp_path / "run") == ["child"]
        assert not is_alive(identity)
        assert supervisor.statuses()[0].state is ChildState.READY
        supervisor.tick()
        assert supervisor.statuses()[0].state is ChildState.READY, "a supervised child is not an orphan"
    assert stop_orphans(tmp_path / "run") == []


def test_a_record_of_another_machine_is_not_believed(tmp_path: Path, make: Callable[..., Child]) -> None:
    pid = killed_supervisor(tmp_path, make("child", SLEEPER))
    path = tmp_path / "run" / "child.json"
    text = path.read_text()
    path.write_text(text.replace(socket.gethostname(), "another-container"))
    assert [status.running for status in read_children(tmp_path / "run")] == [False]
    assert stop_orphans(tmp_path / "run") == []
    assert psutil.pid_exists(pid)
    path.write_text(text)
    assert stop_orphans(tmp_path / "run") == ["child"]


def test_sockets_that_are_left_by_a_container_that_is_gone_are_removed(tmp_path: Path, make: Callable[..., Child]) -> None:
    child = make("child", SLEEPER, owned_paths=(tmp_path / "own.sock",))
    with Supervisor([child], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        text = (tmp_path / "run" / "child.json").read_text()
    (tmp_path / "run" / "child.json").write_text(text.replace(socket.gethostname(), "another-container"))
    (tmp_path / "own.sock").touch()
    with Supervisor([child], run_dir=tmp_path / "run"):
        assert not (tmp_path / "own.sock").exists()


def test_request_stop_ends_run(tmp_path: Path, make: Callable[..., Child]) -> None:
    with Supervisor([make("child", SLEEPER)], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        previous = signal.signal(signal.SIGUSR1, lambda *_: supervisor.request_stop())
        try:
            with subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -USR1 {os.getpid()}"]):
                supervisor.run()
        finally:
            signal.signal(signal.SIGUSR1, previous)


def test_children_do_not_inherit_the_locks_or_the_environment(
    tmp_path: Path, make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "s3cret")
    child = make(
        "child", "import os; print(dict(os.environ), os.listdir('/proc/self/fd')); print('up', flush=True)\nimport signal; signal.pause()"
    )
    with Supervisor([child], run_dir=tmp_path / "run") as supervisor:
        supervisor.start(20)
        pid = supervisor.statuses()[0].pid
        assert pid is not None
        assert [file.path for file in psutil.Process(pid).open_files() if file.path.endswith(".lock")] == []
        assert "PLANTED_SECRET" not in child.spec.log.read_text()
