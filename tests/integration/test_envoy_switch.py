"""Real Envoy: tables are switched, restarted, edited by hand and drained under load, and no request is lost."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from registry.errors import TimedOut, Unavailable
from serving.envoy import EnvoyGateway
from serving.envoy.config import EnvoyConfig
from serving.envoy.files import table_bytes
from support.envoy_process import RunningEnvoy, backend, canary, live
from support.freeze import frozen, thread_named
from support.http_load import HttpLoad
from support.polling import wait_until
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration

PATH = "/v2/models/digits/infer"


@pytest.fixture
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy() as running:
        yield running


@pytest.fixture
def node(envoy: RunningEnvoy) -> Iterator[UdsServer]:
    with UdsServer(envoy.sockets / "a.sock", name="a") as server:
        yield server


def served(envoy: RunningEnvoy, path: str = PATH) -> str:
    return httpx.post(envoy.url + path, json={}).headers.get("x-modelway-release", "none")


def test_no_request_that_starts_after_apply_is_routed_by_the_table_before(envoy: RunningEnvoy, node: UdsServer) -> None:
    tables = [live(backend(1, node.socket), backend(2, node.socket)), live(backend(2, node.socket), backend(1, node.socket))]
    envoy.gateway.apply(tables[0])
    windows: list[tuple[float, float, str]] = []  # from apply's return to the next apply's start, only one release may answer
    with HttpLoad(envoy.config.port, PATH, num_threads=6, pause_s=0.0) as load:
        for switch in range(60):
            returned = time.monotonic()
            num_before = len(load.answers)
            wait_until(lambda n=num_before: len(load.answers) > n + 12, what="answers by the new table")
            windows.append((returned, time.monotonic(), str(switch % 2 + 1)))
            envoy.gateway.apply(tables[(switch + 1) % 2])
    assert load.failed == []
    wrong = checked = 0
    for begin, end, release in windows:
        inside = [answer for answer in load.answers if begin <= answer.started < end]
        checked += len(inside)
        wrong += sum(answer.release != release for answer in inside)
    assert checked > 60 * 8
    assert wrong == 0
    text = envoy.gateway.metrics_text()
    per_worker = [line for line in text.splitlines() if line.startswith("envoy_listener_worker_downstream_cx_total")]
    assert len([line for line in per_worker if not line.endswith(" 0")]) == 2, "the load must reach both worker threads"


def test_a_canary_gets_its_share(envoy: RunningEnvoy, node: UdsServer) -> None:
    percent, n = 20.0, 2000
    envoy.gateway.apply(canary(backend(1, node.socket), backend(2, node.socket), percent))
    with HttpLoad(envoy.config.port, PATH, pause_s=0.0) as load:
        wait_until(lambda: len(load.answers) >= n, 60, f"{n} answers")
    assert load.failed == []
    share = sum(answer.release == "2" for answer in load.answers) / len(load.answers)
    # Six standard deviations of a binomial share: wrong once in a billion runs.
    assert abs(share - 0.2) < 6 * math.sqrt(0.2 * 0.8 / len(load.answers))


def test_a_release_that_is_removed_is_gone_and_nothing_fails(envoy: RunningEnvoy, node: UdsServer) -> None:
    first, second = backend(1, node.socket), backend(2, node.socket)
    envoy.gateway.apply(live(first))
    with HttpLoad(envoy.config.port, PATH) as load:
        for table in (live(first, second), live(second, first), live(second)):
            envoy.gateway.apply(table)
            assert envoy.gateway.observe().digest == table.digest
            num_before = len(load.answers)
            wait_until(lambda n=num_before: len(load.answers) > n + 20, what="answers")
    assert load.failed == []
    assert set(envoy.gateway.observe().counters) == {2}
    assert httpx.post(f"{envoy.url}/v2/models/digits/versions/1/infer").status_code == 404


def test_a_restart_comes_up_with_the_same_routes_and_counts_from_zero(envoy: RunningEnvoy, node: UdsServer) -> None:
    table = canary(backend(1, node.socket), backend(2, node.socket), 50)
    envoy.gateway.apply(table)
    served(envoy)
    envoy.kill()
    assert not envoy.gateway.observe().reachable
    envoy.start()
    state = EnvoyGateway(envoy.config).observe()  # a controller that was restarted too
    assert state.digest == table.digest
    assert [counters.num_requests for counters in state.counters.values()] == [0, 0]
    assert served(envoy) in {"1", "2"}


def test_a_table_applied_while_envoy_is_down_is_loaded_when_it_starts(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    envoy.kill()
    table = live(backend(2, node.socket))
    with pytest.raises(Unavailable, match=r"does not answer.*on disk"):
        envoy.gateway.apply(table)
    envoy.start()
    assert envoy.gateway.observe().digest == table.digest
    assert served(envoy) == "2"


@pytest.mark.parametrize("name", ["clusters_file", "routes_file", "table_file"])
@pytest.mark.parametrize("how", ["in place", "by rename", "garbage", "gone"])
def test_files_edited_by_hand_are_noticed_and_mended(envoy: RunningEnvoy, node: UdsServer, name: str, how: str) -> None:
    table = live(backend(1, node.socket), backend(2, node.socket))
    envoy.gateway.apply(table)
    path = getattr(envoy.config, name)
    edited = path.read_text().replace('"digits"', '"numbers"').replace("/v2/models/digits", "/v2/models/numbers")
    edited = edited.replace('"1.0s"', '"2s"').replace('"1s"', '"2s"')
    assert edited != path.read_text()
    if how == "by rename":
        (envoy.home / "edited").write_text(edited)
        (envoy.home / "edited").rename(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_text(edited if how == "in place" else "{")
    assert envoy.gateway.observe().digest is None
    envoy.gateway.apply(table)
    assert envoy.gateway.observe().digest == table.digest
    assert served(envoy) == "1"


def test_a_table_file_with_a_backend_that_envoy_refuses_stands_in_the_way_only_once(envoy: RunningEnvoy, node: UdsServer) -> None:
    table = live(backend(1, node.socket))
    envoy.gateway.apply(table)
    envoy.config.table_file.write_bytes(table_bytes(live(backend(1, node.socket), backend(9, "/x" * 60))))
    assert envoy.gateway.observe().digest is None
    with pytest.raises(TimedOut, match="exceeds maximum"):
        envoy.gateway.apply(table)
    envoy.gateway.apply(table)
    assert envoy.gateway.observe().digest == table.digest
    assert served(envoy) == "1"


def test_a_changed_node_key_is_noticed_and_reaches_the_node(node: UdsServer) -> None:
    keys = {str(node.socket): "first"}
    with RunningEnvoy(inference_keys=keys) as envoy:
        table = live(backend(1, node.socket))
        envoy.gateway.apply(table)
        served(envoy)
        keys[str(node.socket)] = "second"
        assert envoy.gateway.observe().digest is None
        envoy.gateway.apply(table)
        assert envoy.gateway.observe().digest == table.digest
        served(envoy)
    assert [request.headers["authorization"] for request in node.requests] == ["Bearer first", "Bearer second"]


def test_a_table_that_envoy_refuses_is_refused_fast_with_its_reason(envoy: RunningEnvoy, node: UdsServer) -> None:
    good = live(backend(1, node.socket))
    envoy.gateway.apply(good)
    with pytest.raises(TimedOut, match="exceeds maximum UNIX domain socket path size"):
        envoy.gateway.apply(live(backend(1, node.socket), backend(2, "/x" * 60)))
    wait_until(lambda: envoy.gateway.observe().digest == good.digest, what="the table before")
    assert served(envoy) == "1"
    envoy.kill()
    envoy.start()
    assert served(envoy) == "1"
    better = live(backend(3, node.socket))
    envoy.gateway.apply(better)
    assert envoy.gateway.observe().digest == better.digest


def test_two_gateways_live_side_by_side_and_never_on_one_port(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    with RunningEnvoy() as other:
        other.gateway.apply(live(backend(2, node.socket)))
        assert (served(envoy), served(other)) == ("1", "2")
    third = RunningEnvoy(port=envoy.config.port)
    try:
        with pytest.raises(AssertionError, match=r"Address already in use|cannot bind"):
            third.start()
    finally:
        third.__exit__()
    assert served(envoy) == "1"


def test_draining_loses_no_request_and_lets_the_slow_ones_finish(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    node.delay_s = 0.3
    with HttpLoad(envoy.config.port, PATH, num_threads=6) as load:
        wait_until(lambda: len(load.answers) > 12, what="load")
        envoy.gateway.drain(20.0)
        assert envoy.stop() == 0
        wait_until(lambda: load.refused > 0, what="a refused connection")
    assert load.failed == []
    assert len(load.answers) > 18


def test_draining_says_what_it_still_waits_for(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    node.delay_s = 4.0
    asking = threading.Thread(target=served, args=(envoy,))
    asking.start()
    wait_until(lambda: envoy.gateway.observe().active == {1: 1}, what="a request in flight")
    with pytest.raises(TimedOut, match="1 requests in flight"):
        envoy.gateway.drain(1.0)
    asking.join()


def test_a_gateway_that_is_down_is_a_value_not_an_error(envoy: RunningEnvoy) -> None:
    nobody = EnvoyGateway(EnvoyConfig(**{**_fields(envoy.config), "socket_dir": envoy.home / "nowhere"}))
    assert not nobody.observe().reachable
    assert not nobody.ready()
    with pytest.raises(Unavailable, match="modelway up"):
        nobody.metrics_text()


def _fields(config: EnvoyConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in EnvoyConfig.__dataclass_fields__}


def test_the_access_log_has_a_line_per_request_and_no_payload(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, node.socket)))
    headers = {"x-request-id": "trace-me", "x-modelway-channel": 'a"b\\c'}
    httpx.post(envoy.url + PATH + "?token=secret-query", content=b"secret-body", headers={"x-request-id": "first"})
    httpx.post(envoy.url + PATH, content=b"secret-body", headers={**headers, "authorization": "Bearer secret-key"})
    wait_until(lambda: envoy.config.access_log.read_text().count("\n") >= 2, what="two lines")
    lines = [json.loads(line) for line in envoy.config.access_log.read_text().splitlines()]
    assert [line["request_id"] for line in lines] == ["first", "trace-me"]
    assert (lines[0]["status"], lines[0]["release"], lines[0]["path"], lines[0]["received_bytes"]) == (200, "1", PATH, 11)
    assert lines[0]["duration_ms"] >= 0
    assert (lines[1]["status"], lines[1]["channel"]) == (404, 'a"b\\c')
    assert "secret" not in envoy.config.access_log.read_text()


def test_apply_waits_for_each_worker_thread(node: UdsServer) -> None:
    with RunningEnvoy(apply_timeout_s=0.5) as envoy:
        first, second = live(backend(1, node.socket), backend(2, node.socket)), live(backend(2, node.socket), backend(1, node.socket))
        envoy.gateway.apply(first)
        assert envoy.process is not None
        for worker in ("wrk:worker_0", "wrk:worker_1"):
            with frozen(thread_named(envoy.process.pid, worker)), pytest.raises(TimedOut, match="worker thread of the gateway is stuck"):
                envoy.gateway.apply(second)
            wait_until(lambda: envoy.gateway.observe().digest == first.digest, what="the table before")
        envoy.gateway.apply(second)
        assert served(envoy) == "2"
