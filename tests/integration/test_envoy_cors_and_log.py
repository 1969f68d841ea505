"""CORS, the access log's rotation, and the limits of the real gateway that are settings."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from registry.errors import Unavailable, UsageError
from serving.api_keys import KeyFile, new_key
from serving.envoy.access_log import rotate_access_log
from support.envoy_process import RunningEnvoy, backend, live
from support.http_load import HttpLoad
from support.polling import wait_until
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration

PATH = "/v2/models/digits/infer"
PAGE, OTHER = "https://app.example.org", "https://evil.example.org"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}


@pytest.fixture
def node_and_envoy(request: pytest.FixtureRequest) -> Iterator[tuple[UdsServer, RunningEnvoy]]:
    with RunningEnvoy(**getattr(request, "param", {})) as envoy, UdsServer(envoy.sockets / "a.sock") as node:
        envoy.gateway.apply(live(backend(1, node.socket)))
        yield node, envoy


# --- CORS


@pytest.mark.parametrize("node_and_envoy", [{"cors_allow_origins": (PAGE,)}], indirect=True)
def test_a_named_origin_may_ask_and_read(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    node, envoy = node_and_envoy
    preflight = httpx.options(f"{envoy.url}{PATH}", headers={"origin": PAGE, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "x-api-key" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    assert node.requests == []
    for status, answer in (
        (200, httpx.post(f"{envoy.url}{PATH}", json={}, headers={"origin": PAGE})),
        (200, httpx.get(f"{envoy.url}/v2/models/digits", headers={"origin": PAGE})),
        (404, httpx.get(f"{envoy.url}/nowhere", headers={"origin": PAGE})),
    ):
        assert (answer.status_code, answer.headers.get_list("access-control-allow-origin")) == (status, [PAGE])
        assert "x-modelway-version" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("node_and_envoy", [{"cors_allow_origins": (PAGE,)}, {}], indirect=True, ids=["another origin", "off"])
def test_no_other_origin_may(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    _, envoy = node_and_envoy
    for response in (
        httpx.options(f"{envoy.url}{PATH}", headers={"origin": OTHER, **PREFLIGHT}),
        httpx.post(f"{envoy.url}{PATH}", json={}, headers={"origin": OTHER}),
        httpx.get(f"{envoy.url}/v2/models/digits", headers={"origin": OTHER}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_a_preflight_needs_no_key_and_the_call_does(tmp_path) -> None:
    file = KeyFile(tmp_path / "keys")
    key, word = new_key("page")
    file.add(key)
    with RunningEnvoy(cors_allow_origins=("*",), api_keys=file) as envoy, UdsServer(envoy.sockets / "a.sock") as node:
        envoy.gateway.apply(live(backend(1, node.socket)))
        assert httpx.options(f"{envoy.url}{PATH}", headers={"origin": PAGE, **PREFLIGHT}).status_code == 200
        refused = httpx.post(f"{envoy.url}{PATH}", json={}, headers={"origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE), "a page must be able to read why"
        assert httpx.post(f"{envoy.url}{PATH}", json={}, headers={"origin": PAGE, "x-api-key": word}).status_code == 200


@pytest.mark.parametrize("origin", ["app.example.org", "https://", "https://a/b", "ftp://a", "null", ""])
def test_what_is_no_origin_is_named(origin: str) -> None:
    with pytest.raises(UsageError, match="invalid CORS origin"):
        RunningEnvoy(cors_allow_origins=(origin,))


# --- the access log


@pytest.mark.parametrize("node_and_envoy", [{"access_log_max_bytes": 20_000}], indirect=True)
def test_the_access_log_is_moved_aside_under_load_and_no_line_is_lost(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    _, envoy = node_and_envoy
    log = envoy.config.access_log
    with HttpLoad(envoy.config.port, PATH) as load:
        wait_until(lambda: rotate_access_log(envoy.config), what="a log of 20 kB")
        enough = len(load.answers) + 20
        wait_until(lambda: len(load.answers) >= enough, what="requests after the rotation")
    moved = log.with_name(f"{log.name}.1")
    wait_until(lambda: log.exists() and _num_lines(moved) + _num_lines(log) >= len(load.answers), what="every line")
    assert load.failed == []
    assert _num_lines(moved) + _num_lines(log) == len(load.answers)
    assert moved.stat().st_size > 20_000


def _num_lines(path) -> int:
    return len([json.loads(line) for line in path.read_text().splitlines()])


def test_a_small_log_or_none_stays(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    _, envoy = node_and_envoy
    assert rotate_access_log(envoy.config) is False
    envoy.config.access_log.unlink(missing_ok=True)
    assert rotate_access_log(envoy.config) is False


@pytest.mark.parametrize("node_and_envoy", [{"access_log_max_bytes": 1}], indirect=True)
def test_a_gateway_that_does_not_answer_is_said(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    _, envoy = node_and_envoy
    httpx.get(f"{envoy.url}/v2")
    envoy.stop()
    with pytest.raises(Unavailable, match="the gateway does not answer"):
        rotate_access_log(envoy.config)


# --- limits


@pytest.mark.parametrize("node_and_envoy", [{"max_connections": 3}], indirect=True)
def test_connections_past_the_limit_are_closed_and_the_others_served(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    _, envoy = node_and_envoy
    kept = [http.client.HTTPConnection("127.0.0.1", envoy.config.port, timeout=5) for _ in range(3)]
    for connection in kept:
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    with socket.create_connection(("127.0.0.1", envoy.config.port), timeout=5) as one_too_many:
        one_too_many.settimeout(5)
        assert one_too_many.recv(1) == b""
    kept[0].request("GET", "/v2/health/live")
    assert kept[0].getresponse().read() == b'{"live":true}'
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("node_and_envoy", [{"max_header_kib": 8}], indirect=True)
def test_large_headers_are_431(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    node, envoy = node_and_envoy
    response = httpx.post(f"{envoy.url}{PATH}", json={}, headers={"x-large": "a" * 9000})
    assert response.status_code == 431
    assert "larger than 8 KiB" in response.json()["error"]
    assert node.requests == []


@pytest.mark.parametrize("node_and_envoy", [{"idle_timeout_s": 0.5}], indirect=True)
def test_an_idle_connection_is_closed(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    _, envoy = node_and_envoy
    with socket.create_connection(("127.0.0.1", envoy.config.port), timeout=5) as idle:
        assert idle.recv(1) == b""


@pytest.mark.parametrize("node_and_envoy", [{"max_memory_mib": 128, "max_body_bytes": 16 << 20}], indirect=True)
def test_bodies_that_do_not_fit_into_memory_are_refused_and_the_gateway_goes_on(node_and_envoy: tuple[UdsServer, RunningEnvoy]) -> None:
    """32 half-sent bodies of 15 MiB are 480 MiB; the gateway may have 128."""
    _, envoy = node_and_envoy
    assert envoy.process is not None
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {16 << 20}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", envoy.config.port), timeout=5) for _ in range(32)]
    try:
        for client in clients:
            client.settimeout(1)
            _send_what_is_taken(client, head + bytes(15 << 20))
        statuses = {httpx.post(f"{envoy.url}{PATH}", json={}).status_code for _ in range(5)}
        assert statuses <= {200, 503}
    finally:
        for client in clients:
            client.close()
    assert envoy.process.poll() is None
    assert _peak_mib(envoy.process.pid) < 400
    wait_until(lambda: httpx.post(f"{envoy.url}{PATH}", json={}).status_code == 200, what="service again")


def _send_what_is_taken(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:  # reset, or not read: both are refusals
        return


def _peak_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
