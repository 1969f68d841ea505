"""Several servers in one campaign: stopped while others are measured, gone at the end, and one that fails does not stop the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks import campaign
from benchmarks.__main__ import problems_of
from benchmarks.campaign import Bench, Plan
from benchmarks.http_client import LoadClient
from benchmarks.parts import Servers
from benchmarks.rates import BINARY, JSON
from benchmarks.report import Results, render
from benchmarks.servers import fastapi
from benchmarks.servers.rival import Launch, Setting
from benchmarks.servers.running import RunningRival, problem_of
from benchmarks.workloads import Workload, write_mlp
from registry.errors import Unavailable

pytestmark = pytest.mark.integration

BROKEN = replace(
    fastapi.RIVAL,
    name="broken",
    title="Broken",
    launch=lambda place, setting: Launch(argv=(sys.executable, "-c", "raise SystemExit('no such module')")),
)
TWO = replace(fastapi.RIVAL, settings=(Setting(name="first"), Setting(name="second")))
PLAN = Plan(
    forms=(BINARY, JSON),
    connections=(2,),
    fractions=(0.5,),
    num_rounds=2,
    num_open_rounds=1,
    cell_s=0.2,
    open_s=0.2,
    warmup_s=0.05,
    calibration_s=0.1,
)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return write_mlp(tmp_path_factory.mktemp("workload"))


@pytest.fixture
def server(workload: Workload, tmp_path: Path) -> Iterator[RunningRival]:
    started = RunningRival(fastapi.RIVAL, fastapi.RIVAL.settings[0], workload, tmp_path / "server")
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


def family(server: RunningRival) -> list[psutil.Process]:
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def test_a_paused_server_does_nothing_and_goes_on(server: RunningRival) -> None:
    server.pause()
    assert {process.status() for process in family(server)} == {psutil.STATUS_STOPPED}
    server.resume()
    assert psutil.STATUS_STOPPED not in {process.status() for process in family(server)}
    assert [problem_of(target) for target in server.targets] == ["", ""]


def test_a_stopped_server_leaves_no_process_even_if_it_was_paused(server: RunningRival) -> None:
    processes = family(server)
    assert len(processes) > 2  # uvicorn's workers
    server.pause()
    server.stop()
    assert [process for process in processes if process.is_running()] == []


def test_a_server_that_ends_is_told_with_its_last_words(workload: Workload, tmp_path: Path) -> None:
    started = RunningRival(BROKEN, BROKEN.settings[0], workload, tmp_path / "broken")
    with pytest.raises(Unavailable, match="no such module"):
        started.wait_ready()


def test_one_that_fails_is_listed_and_the_others_are_measured(workload: Workload, tmp_path: Path) -> None:
    said: list[str] = []
    with LoadClient() as client:
        bench = Bench(workload=workload, directory=tmp_path, plan=PLAN, client=client, say=said.append)
        found = campaign.run([], [BROKEN, TWO], bench)
    assert "no such module" in found.broken["Broken"]
    assert found.calibrations[TWO.title].keys() == {"first", "second"}
    assert found.settings[TWO.title] == max(found.calibrations[TWO.title], key=lambda name: found.calibrations[TWO.title][name])
    assert [(cell.form, cell.fraction, cell.round) for cell in found.cells] == [
        (form, fraction, number) for fraction, rounds in ((0.0, (0, 1)), (0.5, (0,))) for number in rounds for form in (BINARY, JSON)
    ]
    assert all(cell.measured.requests_per_s > 0 and not cell.measured.failed for cell in found.cells), found.cells
    results = Results(
        date="", command="", quick=False, machine={}, versions={}, how={}, failed_parts={"models": "no file"}, servers=Servers(mlp=found)
    )
    assert [problem.partition(":")[0] for problem in problems_of(results)] == ["models was not measured", "Broken was not measured"]
    assert "- Broken: " in render(results)
    assert "- models: no file" in render(results)
