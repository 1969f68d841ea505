"""Real Envoy: what is counted for a release, whoever answered, and in which latency bucket."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf

import httpx
import pytest

from registry.verdict import ReleaseCounters
from serving.envoy.bootstrap import LATENCY_BOUNDS_MS
from support.envoy_process import RunningEnvoy, backend, canary, live
from support.polling import wait_until
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration


@pytest.fixture
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy(request_timeout_s=0.5) as running:
        yield running


@pytest.fixture
def node(envoy: RunningEnvoy) -> Iterator[UdsServer]:
    with UdsServer(envoy.sockets / "a.sock") as server:
        yield server


def ask(envoy: RunningEnvoy, times: int = 1, **headers: str) -> list[int]:
    with httpx.Client(base_url=envoy.url) as client:
        return [client.post("/predictions/digits", json={}, headers=headers).status_code for _ in range(times)]


def counted(envoy: RunningEnvoy, release: int = 1) -> ReleaseCounters:
    return envoy.gateway.observe().counters[release]


@pytest.mark.parametrize(("status", "num_errors"), [(200, 0), (400, 0), (404, 0), (429, 0), (500, 3), (503, 3), (507, 3)])
def test_answers_of_the_node(envoy: RunningEnvoy, node: UdsServer, status: int, num_errors: int) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    node.status = status
    assert ask(envoy, 3) == [status] * 3
    counters = counted(envoy)
    assert (counters.num_requests, counters.num_errors, counters.latency_buckets[inf]) == (3, num_errors, 3)


def test_a_dead_socket_counts_as_errors(envoy: RunningEnvoy) -> None:
    envoy.gateway.apply(live(backend(1, envoy.sockets / "nobody.sock")))
    assert ask(envoy, 3) == [503] * 3
    assert (counted(envoy).num_requests, counted(envoy).num_errors) == (3, 3)


def test_no_node_at_all_counts_as_errors(envoy: RunningEnvoy) -> None:
    envoy.gateway.apply(live(backend(1)))
    assert ask(envoy, 3) == [503] * 3
    assert (counted(envoy).num_requests, counted(envoy).num_errors) == (3, 3)


def test_timeouts_count_as_errors(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    node.delay_s = 5.0
    assert ask(envoy, 2) == [504] * 2
    assert (counted(envoy).num_requests, counted(envoy).num_errors) == (2, 2)


def test_a_node_killed_in_the_middle_counts_as_errors(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    node.delay_s = 5.0
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, envoy)
        wait_until(lambda: envoy.gateway.observe().active == {1: 1}, what="a request in flight")
        node.close()
        assert answer.result() == [503]
    assert (counted(envoy).num_requests, counted(envoy).num_errors) == (1, 1)


def test_a_retried_connect_counts_once_and_as_what_it_became(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, envoy.sockets / "nobody.sock", node.socket)))
    assert ask(envoy, 20) == [200] * 20
    assert (counted(envoy).num_requests, counted(envoy).num_errors) == (20, 0)


def test_a_request_over_which_a_worker_died_counts_as_an_error_though_another_answered(envoy: RunningEnvoy, node: UdsServer) -> None:
    with UdsServer(envoy.sockets / "worker.sock") as worker:
        worker.drops_predictions = True
        envoy.gateway.apply(live(backend(1, node.socket, workers=[worker.socket])))
        assert ask(envoy) == [200]
        assert (len(worker.predictions), len(node.predictions)) == (2, 1)
        assert (counted(envoy).num_requests, counted(envoy).num_errors) == (1, 1)


def test_refusals_that_are_no_models_fault_count_for_no_release(node: UdsServer) -> None:
    with RunningEnvoy(max_body_bytes=10) as envoy:
        envoy.gateway.apply(live(backend(1, node.socket)))
        assert httpx.post(f"{envoy.url}/predictions/digits", content=b"x" * 11).status_code == 413
        assert httpx.get(f"{envoy.url}/predictions/digits").status_code == 405
        assert counted(envoy).num_requests == 0


def test_requests_in_flight_are_seen_and_histograms_are_current(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket), backend(2, node.socket)))
    node.delay_s = 0.3
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, envoy) for _ in range(3)]
        wait_until(lambda: envoy.gateway.observe().active == {1: 3, 2: 0}, what="three requests in flight")
        assert [answer.result() for answer in answers] == [[200]] * 3
    state = envoy.gateway.observe()
    assert state.active == {1: 0, 2: 0}
    assert state.counters[1].latency_buckets[inf] == 3


def test_each_request_is_in_its_latency_bucket(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    node.delay_s = 0.12
    ask(envoy, 5)
    buckets = counted(envoy).latency_buckets
    assert tuple(sorted(buckets)) == (*map(float, LATENCY_BOUNDS_MS), inf)
    assert buckets[110] == 0
    assert buckets[450] == 5


def test_counters_survive_a_switch(envoy: RunningEnvoy, node: UdsServer) -> None:
    first, second = backend(1, node.socket), backend(2, node.socket)
    envoy.gateway.apply(live(first))
    ask(envoy, 3)
    for table in (live(first, second), canary(first, second, 50), live(second, first)):
        envoy.gateway.apply(table)
        assert counted(envoy).num_requests >= 3
    envoy.gateway.apply(live(backend(1, node.socket, envoy.sockets / "another.sock"), second))
    assert counted(envoy).num_requests >= 3
