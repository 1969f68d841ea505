"""Real Envoy in front of a server that says what it was asked: every route, status and header."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serving.routes import ChannelRoute, RouteTable
from support.envoy_process import SIGNATURE, RunningEnvoy, backend, live
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration

V1, V2, V3 = "1-onnx-fp32-000000000001", "2-onnx-fp32-000000000002", "2-onnx-fp32-000000000003"


@pytest.fixture(scope="module")
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy(max_body_bytes=1 << 20, request_timeout_s=1.0, header_timeout_s=1.0) as running:
        yield running


@pytest.fixture(scope="module")
def node(envoy: RunningEnvoy) -> Iterator[UdsServer]:
    with UdsServer(envoy.sockets / "a.sock", name="a") as server:
        yield server


@pytest.fixture(autouse=True)
def table(envoy: RunningEnvoy, node: UdsServer) -> RouteTable:
    """Production serves version 1, staging version 2 by release 2; release 3 is version 2 again, warm."""
    node.status, node.delay_s, node.response_headers = 200, 0.0, {}
    channels = (
        ChannelRoute(model="digits", channel="production", live=1),
        ChannelRoute(model="digits", channel="staging", live=2),
        ChannelRoute(model="only.staged", channel="staging", live=4),
    )
    releases = (
        backend(1, node.socket),
        backend(2, node.socket),
        backend(3, node.socket, version=2),
        backend(4, node.socket, version=1, model="only.staged"),
    )
    table = RouteTable(backends=releases, channels=channels)
    envoy.gateway.apply(table)
    return table


def ask(envoy: RunningEnvoy, method: str, path: str, **headers: str) -> httpx.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return httpx.request(method, envoy.url + path, headers=named, content=b"{}" if method == "POST" else None, timeout=10)


@pytest.mark.parametrize(
    ("method", "path", "channel", "protocol", "engine_version", "release"),
    [
        ("POST", "/v2/models/digits/infer", "", "v2-infer", V1, 1),
        ("POST", "/v2/models/digits/infer", "production", "v2-infer", V1, 1),
        ("POST", "/v2/models/digits/infer", "staging", "v2-infer", V2, 2),
        ("POST", "/v2/models/digits/versions/1/infer", "", "v2-infer", V1, 1),
        ("POST", "/v2/models/digits/versions/1/infer", "staging", "v2-infer", V1, 1),
        ("POST", "/v2/models/digits/versions/2/infer", "", "v2-infer", V3, 3),
        ("GET", "/v2/models/digits/ready", "", "v2-ready", V1, 1),
        ("GET", "/v2/models/digits/ready", "staging", "v2-ready", V2, 2),
        ("GET", "/v2/models/digits/versions/2/ready", "", "v2-ready", V3, 3),
        ("POST", "/v1/models/digits:predict", "", "v1-predict", V1, 1),
        ("POST", "/v1/models/digits:predict", "staging", "v1-predict", V2, 2),
        ("POST", "/v1/models/digits/versions/2:predict", "", "v1-predict", V3, 3),
        ("POST", "/predictions/digits", "", "predictions", V1, 1),
        ("POST", "/predictions/digits", "staging", "predictions", V2, 2),
        ("POST", "/predictions/digits/1", "", "predictions", V1, 1),
        ("POST", "/predictions/only.staged", "staging", "predictions", "1-onnx-fp32-000000000004", 4),
    ],
)
def test_calls_reach_their_release(
    envoy: RunningEnvoy, *, method: str, path: str, channel: str, protocol: str, engine_version: str, release: int
) -> None:
    query = "?timeout=5&x=%2F..%2Fmodels"
    response = ask(envoy, method, path + query, **({"x_modelway_channel": channel} if channel else {}))
    seen = response.json()
    assert response.status_code == 200
    model = "only.staged" if "only" in path else "digits"
    assert (seen["method"], seen["path"]) == (method, f"/predictions/{model}/{engine_version}{query}")
    assert seen["headers"]["x-modelway-protocol"] == protocol
    assert seen["headers"]["x-request-id"] == response.headers["x-request-id"]
    assert response.headers["x-modelway-release"] == str(release)
    assert response.headers["x-modelway-version"] == engine_version.partition("-")[0]


@pytest.mark.parametrize(
    ("path", "channel", "answer"),
    [
        ("/v2", "", {"name": "modelway", "version": "2", "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", "", {"live": True}),
        ("/v2/health/ready", "", {"ready": True}),
        ("/ping", "", {"status": "Healthy"}),
        ("/v2/models/digits", "", {"name": "digits", "versions": ["1", "2"], "platform": "modelway", **SIGNATURE.to_json()}),
        ("/v2/models/digits/versions/2", "", {"name": "digits", "versions": ["1", "2"], "platform": "modelway", **SIGNATURE.to_json()}),
        (
            "/v1/models/digits",
            "",
            {
                "name": "digits",
                "ready": True,
                "model_version_status": [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}],
            },
        ),
        (
            "/v1/models/digits/metadata",
            "staging",
            {"model_spec": {"name": "digits", "signature_name": "serving_default", "version": "2"}, "metadata": SIGNATURE.to_json()},
        ),
    ],
)
def test_envoy_answers_metadata_by_itself(envoy: RunningEnvoy, node: UdsServer, path: str, channel: str, answer: dict[str, Any]) -> None:
    num_before = len(node.requests)
    response = ask(envoy, "GET", path, **({"x_modelway_channel": channel} if channel else {}))
    assert response.status_code == 200
    assert response.json() == answer
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    if "models" in path:
        assert {"x-modelway-version", "x-modelway-release"} <= set(response.headers)
    assert len(node.requests) == num_before


@pytest.mark.parametrize(
    ("method", "path", "channel", "status", "says"),
    [
        ("POST", "/v2/models/digits/infer", "canary", 404, "unknown channel (canary). Channels of digits: production, staging."),
        ("GET", "/v1/models/digits", 'a"b', 404, 'unknown channel (a"b)'),
        (
            "POST",
            "/v2/models/only.staged/infer",
            "",
            404,
            "only.staged has no production release. Channels of only.staged: staging. Name one",
        ),
        ("POST", "/v2/models/digits/versions/9/infer", "", 404, "no such version of digits is served. Versions: 1, 2."),
        ("POST", "/v1/models/digits/versions/9:predict", "", 404, "no such version of digits is served. Versions: 1, 2."),
        ("POST", "/predictions/digits/9", "", 404, "no such version of digits is served. Versions: 1, 2."),
        ("POST", "/v2/models/letters/infer", "", 404, "no such path or model. Models: digits, only.staged."),
        ("GET", "/", "", 404, "no such path or model."),
        ("GET", "/models", "", 404, "no such path or model."),
        ("POST", "/predictions/onlyxstaged", "staging", 404, "no such path or model."),
        ("GET", "/v2/models/digits/infer", "", 405, "method not allowed. Use POST."),
        ("PUT", "/v2/models/digits/versions/1/infer", "", 405, "method not allowed. Use POST."),
        ("DELETE", "/v2/models/digits", "", 405, "method not allowed. Use GET."),
        ("OPTIONS", "/predictions/digits", "", 405, "method not allowed. Use POST or PUT."),
        ("POST", "/v2/health/ready", "", 405, "method not allowed. Use GET."),
    ],
)
def test_everything_else_says_what_to_do(envoy: RunningEnvoy, *, method: str, path: str, channel: str, status: int, says: str) -> None:
    response = ask(envoy, method, path, **({"x_modelway_channel": channel} if channel else {}))
    assert response.status_code == status
    assert says in response.json()["error"]
    assert list(response.json()) == ["error"]
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    if status == 405:
        assert response.headers["allow"] == ", ".join(re.findall("GET|POST|PUT", says))


def test_readiness_follows_the_table(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(RouteTable())
    response = ask(envoy, "GET", "/v2/health/ready")
    assert (response.status_code, "promote" in response.json()["error"]) == (503, True)
    assert ask(envoy, "GET", "/ping").status_code == 503
    assert ask(envoy, "GET", "/v2/health/live").status_code == 200
    envoy.gateway.apply(live(backend(1)))
    assert "no node serves digits@production" in ask(envoy, "GET", "/v2/health/ready").json()["error"]
    envoy.gateway.apply(live(backend(1, node.socket)))
    assert ask(envoy, "GET", "/v2/health/ready").status_code == 200


def test_model_readiness_is_the_workers_own(envoy: RunningEnvoy, node: UdsServer) -> None:
    node.status = 503
    assert ask(envoy, "GET", "/v2/models/digits/ready").status_code == 503


def test_what_a_client_says_of_itself_does_not_get_through(node: UdsServer) -> None:
    with RunningEnvoy(inference_keys={str(node.socket): "node-key"}) as envoy:
        envoy.gateway.apply(live(backend(1, node.socket)))
        response = ask(
            envoy,
            "POST",
            "/v2/models/digits/infer",
            authorization="Bearer stolen",
            x_modelway_protocol="v2-ready",
            x_modelway_valid_request_id="forged",
            x_envoy_upstream_rq_timeout_ms="1",
            x_envoy_original_path="/models",
        )
    seen = response.json()["headers"]
    assert seen["authorization"] == "Bearer node-key"
    assert seen["x-modelway-protocol"] == "v2-infer"
    assert seen["x-request-id"] != "forged"
    assert "x-modelway-valid-request-id" not in seen
    assert "x-envoy-upstream-rq-timeout-ms" not in seen
    assert seen["x-envoy-original-path"] == "/v2/models/digits/infer"
    assert "node-key" not in json.dumps(dict(response.headers))


def test_each_node_gets_its_own_key(envoy: RunningEnvoy, node: UdsServer) -> None:
    with (
        UdsServer(envoy.sockets / "b.sock", name="b") as other,
        RunningEnvoy(inference_keys={str(node.socket): "key-a", str(other.socket): "key-b"}) as keyed,
    ):
        keyed.gateway.apply(live(backend(1, node.socket, other.socket)))
        seen = [ask(keyed, "POST", "/predictions/digits").json() for _ in range(40)]
    assert {(answer["server"], answer["headers"]["authorization"]) for answer in seen} == {("a", "Bearer key-a"), ("b", "Bearer key-b")}


def test_a_nodes_own_headers_do_not_speak_in_our_name(envoy: RunningEnvoy, node: UdsServer) -> None:
    node.response_headers = {
        "x-modelway-release": "99",
        "x-modelway-version": "99",
        "x-request-id": "its-own",
        "server": "TorchServe",
        "pragma": "x",
    }
    response = ask(envoy, "POST", "/predictions/digits", x_request_id="mine")
    assert response.headers.get_list("x-modelway-release") == ["1"]
    assert response.headers.get_list("x-modelway-version") == ["1"]
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers["server"] == "modelway"
    assert not {"pragma", "x-envoy-upstream-service-time"} & set(response.headers)


@pytest.mark.parametrize("request_id", ["a", "018f-ab_c.d:e", "x" * 128])
@pytest.mark.parametrize("path", ["/predictions/digits", "/v2/models/digits", "/nowhere"])
def test_a_valid_request_id_is_kept(envoy: RunningEnvoy, request_id: str, path: str) -> None:
    assert ask(envoy, "POST", path, x_request_id=request_id).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 129, 'a"b', "a b", "<script>", "\u00e4".encode().decode("latin-1"), "a,b"])
def test_any_other_request_id_is_replaced(envoy: RunningEnvoy, request_id: str) -> None:
    response = httpx.post(f"{envoy.url}/predictions/digits", headers={b"x-request-id": request_id.encode("latin-1")}, content=b"{}")
    assert len(response.headers["x-request-id"]) == 36
    assert response.json()["headers"]["x-request-id"] == response.headers["x-request-id"]


# --- limits


def test_a_large_body_is_refused_and_a_fitting_one_is_not(envoy: RunningEnvoy, node: UdsServer) -> None:
    fits, num_before = b"x" * (1 << 20), len(node.requests)
    assert httpx.post(f"{envoy.url}/predictions/digits", content=fits).json()["body_bytes"] == 1 << 20
    for content in (fits + b"x", (chunk for chunk in [fits, b"x"])):
        response = httpx.post(f"{envoy.url}/predictions/digits", content=content)
        assert response.status_code == 413
        assert response.json() == {"error": "the request body is larger than 1 MiB; send a smaller batch"}
    assert len(node.requests) == num_before + 1


def test_a_model_that_takes_too_long_is_504(envoy: RunningEnvoy, node: UdsServer) -> None:
    node.delay_s = 3.0
    response = ask(envoy, "POST", "/predictions/digits", x_request_id="slow")
    assert response.status_code == 504
    assert response.json() == {"error": "the model did not answer within 1 s; send a smaller batch or ask again later"}
    assert (response.headers["x-request-id"], response.headers["x-modelway-release"]) == ("slow", "1")


def test_no_node_is_503_with_retry_after(envoy: RunningEnvoy) -> None:
    envoy.gateway.apply(live(backend(1, envoy.sockets / "nobody.sock")))
    response = ask(envoy, "POST", "/predictions/digits")
    assert response.status_code == 503
    assert response.json() == {"error": "no worker of the model answers; ask again later"}
    assert response.headers["retry-after"] == "1"
    assert (response.headers["x-modelway-release"], response.headers["x-modelway-version"]) == ("1", "1")


def test_a_dead_node_is_passed_over(envoy: RunningEnvoy, node: UdsServer) -> None:
    envoy.gateway.apply(live(backend(1, envoy.sockets / "nobody.sock", node.socket)))
    assert [ask(envoy, "POST", "/predictions/digits").status_code for _ in range(40)] == [200] * 40


def test_overload_is_503_with_retry_after(node: UdsServer) -> None:
    node.delay_s = 0.5
    with RunningEnvoy(max_active_requests=1, max_pending_requests=1, concurrency=1) as envoy:
        envoy.gateway.apply(live(backend(1, node.socket)))
        statuses = _raw_at_once(envoy, 6)
    # One is answered; a second one waits, unless it comes while the first still waits for its connection.
    assert statuses.count(200) in (1, 2)
    assert statuses.count(503) == 6 - statuses.count(200)


def _raw_at_once(envoy: RunningEnvoy, num_requests: int) -> list[int]:
    connections = [socket.create_connection(("127.0.0.1", envoy.config.port), timeout=10) for _ in range(num_requests)]
    for connection in connections:
        connection.sendall(b"POST /predictions/digits HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    statuses = []
    for connection in connections:
        answer = connection.recv(4096).decode()
        statuses.append(int(answer.split(" ")[1]))
        assert statuses[-1] == 200 or ("retry-after: 1" in answer and "too many requests in flight" in answer)
        connection.close()
    return statuses


def _raw(envoy: RunningEnvoy, request: bytes) -> str:
    with socket.create_connection(("127.0.0.1", envoy.config.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        return answer.decode("latin-1")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /predictions/digits HTTP/1.1\r\nHost: x\r\n" + b"a: %s\r\n" % (b"x" * 70_000) + b"\r\n", 431),
        (b"POST /predictions/digits HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: x\r\n" % i for i in range(200)) + b"\r\n", 431),
        (b"POST /predictions/digits HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /predictions/digits HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /predictions/digits HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /predictions/digits HTTP/1.1\r\nHost: x\r\n", 408),
    ],
    ids=["large header", "many headers", "two lengths", "contradicting lengths", "no host", "no HTTP", "half a request"],
)
def test_malformed_and_half_sent_requests_are_closed_with_a_4xx(envoy: RunningEnvoy, request_bytes: bytes, status: int) -> None:
    answer = _raw(envoy, request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "node-key" not in answer


def test_connections_are_kept_alive(envoy: RunningEnvoy) -> None:
    with httpx.Client(base_url=envoy.url) as client:
        streams = {id(client.post("/predictions/digits").extensions["network_stream"]) for _ in range(5)}
    assert len(streams) == 1
