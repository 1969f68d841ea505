"""Real Envoy: workers' own sockets first, the nodes' listeners when no worker takes a request, and no request lost between."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from support.envoy_process import RunningEnvoy, backend, canary, live
from support.polling import wait_until
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration


@pytest.fixture
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy() as running:
        yield running


@pytest.fixture
def node(envoy: RunningEnvoy) -> Iterator[UdsServer]:
    with UdsServer(envoy.sockets / "node.sock", name="node") as server:
        yield server


@pytest.fixture
def workers(envoy: RunningEnvoy) -> Iterator[list[UdsServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(UdsServer(envoy.sockets / f"w{slot}.sock", name=f"w{slot}")) for slot in range(2)]


def ask(envoy: RunningEnvoy, times: int = 1) -> list[str]:
    """Who answered; every answer must be 200."""
    with httpx.Client(base_url=envoy.url) as client:
        responses = [client.post("/predictions/digits", json={}) for _ in range(times)]
    assert {response.status_code for response in responses} == {200}, responses[0].text
    return [str(response.json()["server"]) for response in responses]


def test_all_requests_go_to_the_workers(envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]) -> None:
    envoy.gateway.apply(live(backend(1, node.socket, workers=[w.socket for w in workers])))
    assert set(ask(envoy, 40)) == {"w0", "w1"}
    assert node.requests == []  # not even health checks


def test_one_healthy_worker_of_two_gets_everything(envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]) -> None:
    envoy.gateway.apply(live(backend(1, node.socket, workers=[w.socket for w in workers])))
    workers[0].close()
    wait_until(lambda: set(ask(envoy, 20)) == {"w1"}, what="the dead worker is left alone")


def test_without_a_healthy_worker_the_node_answers_and_workers_that_come_back_take_over(
    envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]
) -> None:
    envoy.gateway.apply(live(backend(1, node.socket, workers=[w.socket for w in workers])))
    for worker in workers:
        worker.close()
    assert set(ask(envoy, 40)) == {"node"}  # from the first request on
    with UdsServer(workers[0].socket, name="again"):
        wait_until(lambda: set(ask(envoy, 10)) == {"again"}, what="the worker that came back")


def test_a_table_that_names_workers_which_are_not_there_serves_at_once(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket, workers=[envoy.sockets / "nobody.sock"])))
    assert set(ask(envoy, 20)) == {"node"}


def test_a_new_cluster_is_routed_only_once_its_workers_are_checked(envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    workers[0].delay_s = 0.3  # its health check too, which the gateway waits for
    envoy.gateway.apply(live(backend(1, node.socket), backend(2, node.socket, workers=[workers[0].socket])))
    envoy.gateway.apply(live(backend(2, node.socket, workers=[workers[0].socket])))
    workers[0].delay_s = 0.0
    assert set(ask(envoy, 10)) == {"w0"}


def test_a_worker_that_dies_over_requests_fails_none(envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]) -> None:
    envoy.gateway.apply(live(backend(1, node.socket, workers=[w.socket for w in workers])))
    for worker in workers:
        worker.delay_s = 0.2
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, envoy, 5) for _ in range(8)]
        for worker in workers:
            wait_until(lambda worker=worker: len(worker.predictions) >= 4, what="requests in the worker's hands")
            worker.close()
        served = {server for answer in answers for server in answer.result()}
    assert "node" in served


def test_another_worker_is_asked_before_the_node(envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]) -> None:
    """TorchServe's listener would hand the request to the worker that has just died, and wait."""
    envoy.gateway.apply(live(backend(1, node.socket, workers=[w.socket for w in workers])))
    workers[0].drops_predictions = True
    assert set(ask(envoy, 40)) == {"w1"}
    assert len(workers[0].predictions) > 0
    assert node.predictions == []


def test_workers_come_and_go_under_load_without_a_failure(envoy: RunningEnvoy, node: UdsServer) -> None:
    sockets = [envoy.sockets / f"w{slot}.sock" for slot in range(2)]
    envoy.gateway.apply(live(backend(1, node.socket, workers=sockets)))
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, envoy, 400) for _ in range(4)]
        for life in range(10):
            with UdsServer(sockets[life % 2], name="worker") as worker:
                wait_until(lambda worker=worker: len(worker.predictions) > 5 or all(a.done() for a in answers), what="requests reach it")
        assert sum(len(answer.result()) for answer in answers) == 1600


def test_a_canary_has_its_own_workers(envoy: RunningEnvoy, node: UdsServer, workers: list[UdsServer]) -> None:
    stable, candidate = (backend(n + 1, node.socket, workers=[workers[n].socket]) for n in range(2))
    envoy.gateway.apply(canary(stable, candidate, 50))
    assert set(ask(envoy, 60)) == {"w0", "w1"}
    assert {request.path for request in workers[1].predictions} == {f"/predictions/digits/{candidate.engine_version}"}
