"""A server as a group of processes: started, ready when it answers rightly, stopped in its tracks while others are measured."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.encodings import Encoding, answer, request
from benchmarks.http_client import Target
from benchmarks.ports import free_ports
from benchmarks.servers.rival import Place, Rival, Setting
from benchmarks.setup_environments import python_of
from benchmarks.workloads import Workload, is_close, load_samples
from registry.errors import TimedOut, Unavailable

_READY_TIMEOUT_S = 120.0
_PAUSE_TIMEOUT_S = 5.0
_RIGHT_ANSWERS = 20  # in a row; one is given while other workers still load
_FOREIGN = ("MODELWAY_", "MLFLOW_", "PYTHON", "VIRTUAL_ENV", "COVERAGE", "BENTOML_", "MLSERVER_")
# As many threads as workers everywhere: libraries that count cores would start more.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class RunningRival:
    """One started server of others."""

    def __init__(self, rival: Rival, setting: Setting, workload: Workload, directory: Path) -> None:
        """Start it; raises ModelwayError, OSError or CalledProcessError if its files cannot be made."""
        directory.mkdir(parents=True)
        self.rival, self.setting = rival, setting
        self._workload, self._log = workload, directory / "console.log"
        place = Place(python=python_of(rival.environment), directory=directory, workload=workload, ports=tuple(free_ports(5)))
        self._port = place.port
        launch = rival.launch(place, setting)
        with self._log.open("wb") as console:
            self._process = subprocess.Popen(
                launch.argv,
                cwd=directory,
                env=clean_environment(place.bin) | dict(launch.env),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The first process; the others are below it."""
        return self._process.pid

    @property
    def targets(self) -> list[Target]:
        """Where requests go, one for each encoding."""
        return [
            Target(
                server=self.rival.title,
                encoding=encoding,
                path=path.format(model=self._workload.name),
                samples=str(self._workload.samples),
                port=self._port,
            )
            for encoding, path in self.rival.paths.items()
        ]

    def wait_ready(self, targets: Sequence[Target] | None = None) -> None:
        """Wait until it answers rightly many times in a row, at each target (all by default). Raises Unavailable, TimedOut."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        for target in self.targets if targets is None else targets:
            num_right, problem = 0, ""
            while num_right < _RIGHT_ANSWERS:
                if self._process.poll() is not None:
                    raise Unavailable(f"{self.rival.title} ended ({self._process.returncode})", f"Its last words: {self._last_words()}")
                if time.monotonic() > deadline:
                    raise TimedOut(f"{self.rival.title} is not ready after {_READY_TIMEOUT_S:g} s ({problem})", f"See {self._log}.")
                problem = problem_of(target)
                num_right = 0 if problem else num_right + 1
                if problem:
                    time.sleep(0.1)

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-500:]

    def pause(self) -> None:
        """Stop all its processes where they are, so that they take nothing from the one that is measured."""
        pause([self.pid])

    def resume(self) -> None:
        """Let them go on."""
        resume([self.pid])

    def stop(self) -> None:
        """End all its processes. Idempotent."""
        family = family_of([self._process.pid])
        resume([self._process.pid])
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if self._process.poll() is not None and not any(each.is_running() for each in family):
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            if number == signal.SIGKILL:  # children that left the group
                for each in family:
                    _signal(each, signal.SIGKILL)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
            psutil.wait_procs(family, timeout=2.0)


def clean_environment(programs: Path) -> dict[str, str]:
    """The environment of this process without what other tools left in it; `programs` comes first in PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | _ONE_THREAD | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def problem_of(target: Target) -> str:
    """Ask once on TCP; empty if the answer is right, else what is wrong with it."""
    inputs, expected = load_samples(Path(target.samples))
    headers, body = request(Encoding(target.encoding), inputs[:1])
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    try:
        connection.request("POST", target.path, body, headers | dict(target.headers))
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if response.status != 200:
        return f"status {response.status}: {content[:200]!r}"
    head = "\r\n".join(["", *(f"{name}: {value}" for name, value in response.getheaders())]).encode("latin-1")
    try:
        right = is_close(answer(Encoding(target.encoding), head, content), expected[0])
    except ValueError as error:
        return str(error)
    return "" if right else f"wrong numbers: {content[:200]!r}"


def family_of(pids: Sequence[int]) -> list[psutil.Process]:
    """The processes and all below them, parents first."""
    family = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            family += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return family


def pause(pids: Sequence[int]) -> None:
    """Stop the processes and all below them, parents first, so that no parent sees a child that hangs; wait until they stand still."""
    family = family_of(pids)
    for process in family:
        _signal(process, signal.SIGSTOP)
    deadline = time.monotonic() + _PAUSE_TIMEOUT_S
    while not all(_stands_still(process) for process in family) and time.monotonic() < deadline:
        time.sleep(0.005)


def resume(pids: Sequence[int]) -> None:
    """The reverse, children first."""
    for process in reversed(family_of(pids)):
        _signal(process, signal.SIGCONT)


def _stands_still(process: psutil.Process) -> bool:
    try:
        return bool(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    except psutil.NoSuchProcess:
        return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
