"""`modelway tune` with real workers: of an archive, and of a version in a registry without a platform."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.errors import Unavailable
from registry.tuning import WorkerLayout
from serving.golden import PROBE_HEADERS
from serving.tuning import Goal, TuneOptions, tune
from serving.tuning.load import Load, run_load
from serving.tuning.workers import Workers
from support.live_platform import LivePlatform
from support.mlflow_store import MLFLOW_WARNINGS
from support.nodes import make_archive
from support.uds_server import UdsServer

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]

LAYOUT = WorkerLayout(num_workers=2, num_threads=1, batch_size=4)


def unpack(archive: Path, into: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        content.extractall(into)
    return into


def load_of(**changes: float) -> Load:
    return Load(connections=4, seconds=changes.get("seconds", 0.4), warmup_s=0.1, rate_per_s=changes.get("rate_per_s"))


def test_workers_of_an_archive_are_measured_and_the_best_is_chosen(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, 1, max_rows=4)
    options = TuneOptions(goal=Goal(limit_p99_ms=5000), num_cores=1, max_workers=2, connections=4, budget_s=30)
    said: list[str] = []
    tuned = tune(archive.path, options, said.append)
    assert tuned.holds
    assert {(m.layout.num_workers, m.layout.batch_size) for m in tuned.measured} == {(1, 1), (1, 4), (2, 1), (2, 4)}
    assert all(m.requests_per_s > 0 and 0 < m.p50_ms <= m.p99_ms and not m.problem for m in tuned.measured)
    assert len(said) == 4 + 2


def test_nothing_is_left_behind_when_the_workers_go(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, 1)
    with Workers(unpack(archive.path, tmp_path / "unpacked"), LAYOUT) as workers:
        directory = Path(workers.sockets[0]).parent
        pids = [process.pid for process in workers._processes]
        assert len(pids) == 2
        assert all(Path(socket).is_socket() for socket in workers.sockets)
    assert not directory.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_model_that_must_not_serve_is_not_measured(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, 1, fault="wrong-numbers")
    options = TuneOptions(goal=Goal(limit_p99_ms=20), num_cores=1)
    with pytest.raises(Unavailable, match=r"digits/1 \(onnx-fp32\) cannot be measured \(a worker did not start \(Error: golden set"):
        tune(archive.path, options, lambda _: None)


# --- the load, on a server whose answers are known


def test_every_failure_of_a_worker_is_counted(tmp_path: Path) -> None:
    with UdsServer(tmp_path / "a.sock") as server:
        server.status = 503
        result = run_load([str(server.socket)], "/predictions/digits/1-x-0", PROBE_HEADERS, b"{}", load_of())
        assert result.num_failed == len(server.requests) > 0
        assert result.first_failure.startswith("503")
        assert result.requests_per_s == 0
        server.status, server.drops_predictions = 200, True
        dropped = run_load([str(server.socket)], "/predictions/digits/1-x-0", PROBE_HEADERS, b"{}", load_of())
        assert "closed the connection" in dropped.first_failure
    gone = run_load([str(tmp_path / "a.sock")], "/", PROBE_HEADERS, b"{}", load_of())
    assert "no connection to a worker" in gone.first_failure


def test_requests_go_to_all_workers_as_they_were_asked_for(tmp_path: Path) -> None:
    with UdsServer(tmp_path / "a.sock") as one, UdsServer(tmp_path / "b.sock") as two:
        paths = [str(server.socket) for server in (one, two)]
        result = run_load(paths, "/predictions/digits/1-x-0", PROBE_HEADERS, b'{"x":1}', load_of())
        assert result.num_failed == 0, result.first_failure
        for server in (one, two):
            assert server.requests
            assert {(r.method, r.path, r.body) for r in server.requests} == {("POST", "/predictions/digits/1-x-0", b'{"x":1}')}
            assert server.requests[0].headers["x-modelway-protocol"] == "v2-infer"
        assert json.loads(result.first_answer)["path"] == "/predictions/digits/1-x-0"


def test_latency_of_an_open_loop_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """A server of 100 ms with 4 connections answers 40 a second; of 200 that arrive, most wait longer than the server takes."""
    with UdsServer(tmp_path / "a.sock") as server:
        server.delay_s = 0.1
        paths = [str(server.socket)]
        closed = run_load(paths, "/", PROBE_HEADERS, b"{}", load_of(seconds=1))
        overrun = run_load(paths, "/", PROBE_HEADERS, b"{}", load_of(seconds=1, rate_per_s=200))
    assert closed.num_failed == overrun.num_failed == 0
    assert closed.p50_ms >= 100
    assert overrun.p50_ms > 3 * closed.p50_ms
    assert overrun.requests_per_s <= 45


@pytest.mark.parametrize("rate_per_s", [None, 50])
def test_what_is_never_answered_counts_with_the_time_that_it_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_per_s: float | None
) -> None:
    monkeypatch.setattr("serving.tuning.load._GRACE_S", 0.5)
    with UdsServer(tmp_path / "a.sock") as server:
        server.delay_s = 30
        load = Load(connections=4, seconds=0.4, warmup_s=0, rate_per_s=rate_per_s)
        result = run_load([str(server.socket)], "/", PROBE_HEADERS, b"{}", load)
    assert result.requests_per_s == 0
    assert 400 <= result.p50_ms <= result.p99_ms < 30_000


# --- the command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> LivePlatform:
    """A home with a version, in which nothing runs."""
    home = LivePlatform(tmp_path_factory.mktemp("tune") / "home")
    home.register("digits", 1)
    return home


SHORT = ("--budget-s", "30", "--connections", "4")


@contextmanager
def one_core() -> Iterator[None]:
    """Processes that are started in the block may use one core, so that few layouts are to be measured."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_tuning_needs_no_platform_and_decides_how_the_next_release_runs(home: LivePlatform, tmp_path: Path) -> None:
    picture = tmp_path / "trade-off.svg"
    with one_core():
        report = home.must("tune", "digits/1", *SHORT, "--latency-p99-ms", "5000", "--plot", str(picture))
    assert report["holds"]
    assert report["stored"]
    choice = report["choice"]
    assert choice in report["measured"]
    layouts = {(each["num_workers"], each["num_threads"], each["batch_size"]) for each in report["measured"]}
    assert layouts == {(1, 1, batch_size) for batch_size in (1, 4, 16, 64)}
    assert ET.parse(picture).getroot().tag.endswith("svg")
    home.up()
    try:
        release = home.must("promote", "digits/1")
        wanted = {"intra_op_threads": choice["num_threads"], "batch_size": choice["batch_size"], "num_workers": choice["num_workers"]}
        assert release["options"].items() >= wanted.items()
        assert home.ask("digits").status_code == 200
        live = home.must("status")["channels"][0]["live"]
        assert live["options"] == release["options"]
        text = f"{choice['num_workers']} worker(s), {choice['num_threads']} thread(s), batch {choice['batch_size']}"
        assert text in home.run("status").stdout
        assert text in home.run("history", "digits").stdout
    finally:
        home.down()
    assert home.must("tune", "digits/1", "--forget")["forgotten"] == ["onnx-fp32"]
    assert home.must("tune", "digits/1", "--forget")["forgotten"] == []


def test_a_limit_that_nothing_holds_is_refused_with_the_nearest(home: LivePlatform) -> None:
    with one_core():
        done = home.run("tune", "digits/1", *SHORT, "--latency-p99-ms", "0.001", "--json")
    assert done.returncode == 3, done.stderr
    assert "nothing holds p99 <= 0.001 ms under 4 connections: the nearest is 1 worker(s)" in done.stderr
    report = json.loads(done.stdout)
    assert (report["holds"], report["stored"]) == (False, False)
    assert home.must("tune", "digits/1", "--forget")["forgotten"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("digits/1", "--budget-s", "2"), 2, "is too short"),
        (("digits/1", "--plot", "x.gif"), 2, "unknown kind of picture"),
        (("digits/1", "--latency-p99-ms", "0"), 2, "must be above 0"),
        (("digits/1", "--variant", "onnx-none"), 1, "no such variant"),
        (("digits/9",), 1, "no version 9 of digits"),
    ],
)
def test_what_cannot_be_tuned_says_why(home: LivePlatform, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = home.run("tune", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
