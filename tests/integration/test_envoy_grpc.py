"""gRPC at the real gateway: where each method goes, what becomes of errors, and what hostile bytes and callers get.

The node behind it is a server that answers with what a test gives it; the runtime's own messages are in test_grpc_clients.py.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from serving.api_keys import KeyFile, new_key
from serving.envoy.grpc import METHODS, SERVICE
from serving.routes import RouteTable
from support.certificates import Authority
from support.envoy_process import RunningEnvoy, backend, canary, live
from support.grpc_node import ANSWER, Node, table
from support.grpc_stub import GrpcClient, Outcome, infer_request, outcome

pytestmark = pytest.mark.integration

CODES = grpc.StatusCode
MAX_BODY_BYTES = 1 << 20
ROWS = np.zeros((1, 4), np.float32)


@pytest.fixture(scope="module")
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy(max_body_bytes=MAX_BODY_BYTES, request_timeout_s=2.0) as running:
        yield running


@pytest.fixture(scope="module")
def served(envoy: RunningEnvoy) -> Iterator[Node]:
    with Node(envoy.sockets / "a.sock") as server:
        yield server


@pytest.fixture
def node(envoy: RunningEnvoy, served: Node) -> Node:
    envoy.gateway.apply(table(served))
    served.reset()
    return served


@pytest.fixture(scope="module")
def client(envoy: RunningEnvoy) -> Iterator[GrpcClient]:
    with GrpcClient(envoy.config.port) as opened:
        yield opened


def infer(client: GrpcClient, model: str = "digits", *, version: str = "", **options: object) -> Outcome:
    return client.call("ModelInfer", infer_request(model, ROWS, version=version), **options)  # type: ignore[arg-type]


# --- where requests go


@pytest.mark.parametrize(
    "case",
    [
        ("digits", "", "", "/predictions/digits/1-onnx-fp32-000000000001", "1"),
        ("digits", "1", "", "/predictions/digits/1-onnx-fp32-000000000001", "1"),
        ("digits", "2", "", "/predictions/digits/2-onnx-fp32-000000000002", "2"),
        ("digits", "", "staging", "/predictions/digits/2-onnx-fp32-000000000002", "2"),
        ("other", "", "production", "/predictions/other/1-onnx-fp32-000000000003", "3"),
    ],
)
def test_an_inference_goes_where_rest_would(client: GrpcClient, node: Node, case: tuple[str, str, str, str, str]) -> None:
    model, version, channel, path, release = case
    metadata = [("x-request-id", "mine"), *([("x-modelway-channel", channel)] if channel else [])]
    done = infer(client, model, version=version, metadata=metadata)
    assert done.code is CODES.OK, done
    assert done.message == ANSWER
    assert (done.headers["x-modelway-release"], done.headers["x-request-id"]) == (release, "mine")
    assert done.headers["x-modelway-version"] == path.rpartition("/")[2][0]
    (seen,) = node.requests
    assert (seen.method, seen.path, seen.headers["x-modelway-protocol"]) == ("POST", path, "v2-grpc")
    assert seen.body == infer_request(model, ROWS, version=version).SerializeToString()
    assert seen.headers["content-type"] == "application/x-protobuf"


def test_a_canary_gets_its_share_and_explicit_versions_stay_exact(envoy: RunningEnvoy, client: GrpcClient, node: Node) -> None:
    envoy.gateway.apply(canary(backend(1, node.socket), backend(2, node.socket), 50))
    releases = [infer(client).headers["x-modelway-release"] for _ in range(80)]
    assert 15 < releases.count("2") < 65  # a fair coin misses this once in 10^8 times
    assert {infer(client, version="1").headers["x-modelway-release"] for _ in range(20)} == {"1"}
    assert {infer(client, version="2").headers["x-modelway-release"] for _ in range(20)} == {"2"}


def test_metadata_is_answered_by_the_gateway(client: GrpcClient, node: Node) -> None:
    done = client.call("ModelMetadata", pb.ModelMetadataRequest(name="digits"))
    metadata = done.message
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("digits", ["1", "2"], "modelway")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", "FP32", [-1, 4])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("logits", "FP32", [-1, 3])]
    assert done.headers["x-modelway-version"] == "1"
    done = client.call("ModelMetadata", pb.ModelMetadataRequest(name="digits", version="2"))
    assert done.headers["x-modelway-version"] == "2"
    done = client.call("ModelMetadata", pb.ModelMetadataRequest(name="digits"), metadata=[("x-modelway-channel", "staging")])
    assert done.headers["x-modelway-version"] == "2"
    assert client.call("ServerMetadata", pb.ServerMetadataRequest()).message.name == "modelway"
    assert not node.requests


def test_readiness_is_of_the_table_and_of_the_worker(envoy: RunningEnvoy, client: GrpcClient, node: Node) -> None:
    assert client.call("ServerLive", pb.ServerLiveRequest()).message.live
    assert client.call("ServerReady", pb.ServerReadyRequest()).message.ready
    node.body = pb.ModelReadyResponse(ready=True).SerializeToString()
    assert client.call("ModelReady", pb.ModelReadyRequest(name="digits", version="2")).message.ready
    (seen,) = node.requests
    assert (seen.path, seen.headers["x-modelway-protocol"]) == ("/predictions/digits/2-onnx-fp32-000000000002", "v2-grpc-ready")
    envoy.gateway.apply(RouteTable())
    assert not client.call("ServerReady", pb.ServerReadyRequest()).message.ready
    assert client.call("ModelReady", pb.ModelReadyRequest(name="digits")).code is CODES.NOT_FOUND


# --- errors


@pytest.mark.parametrize(
    "case",
    [
        ("nothing", "", "", CODES.NOT_FOUND, "Models: digits, other"),
        ("digits", "9", "", CODES.NOT_FOUND, "Versions: 1, 2"),
        ("digits", "1/../2", "", CODES.NOT_FOUND, "no such version"),
        ("digits", "", "nightly", CODES.NOT_FOUND, "unknown channel (nightly)"),
        ("", "", "", CODES.INVALID_ARGUMENT, "names no model"),
        ("../digits", "", "", CODES.NOT_FOUND, "no such model"),
        ("digits/infer?x=", "", "", CODES.NOT_FOUND, "no such model"),
        ("digits\n", "", "", CODES.NOT_FOUND, "no such model"),
        ("x" * 5000, "", "", CODES.NOT_FOUND, "longer than any"),
    ],
)
def test_what_does_not_exist_is_not_found(client: GrpcClient, node: Node, case: tuple[str, str, str, grpc.StatusCode, str]) -> None:
    model, version, channel, code, words = case
    done = infer(client, model, version=version, metadata=[("x-modelway-channel", channel)] if channel else [])
    assert done.code is code, done
    assert words in done.details
    assert done.headers["x-request-id"]
    assert not node.requests


@pytest.mark.parametrize(
    "case",
    [
        (400, b'{"error":"bad \\"thing\\" \xc3\xa9 100% sure\\n"}', CODES.INVALID_ARGUMENT, 'bad "thing" é 100% sure\n'),
        (404, b'{"error": "gone"}', CODES.NOT_FOUND, "gone"),
        (413, b'{"error":"too many rows"}', CODES.RESOURCE_EXHAUSTED, "too many rows"),
        (415, b'{"error":"odd"}', CODES.INVALID_ARGUMENT, "odd"),
        (429, b'{"error":"the model\'s queue is full"}', CODES.RESOURCE_EXHAUSTED, "the model's queue is full"),
        (500, b'{"error":"the model failed"}', CODES.INTERNAL, "the model failed"),
        (503, b'{"code":503,"type":"T","message":"of TorchServe"}', CODES.UNAVAILABLE, "of TorchServe"),
        (503, b"", CODES.UNAVAILABLE, "the worker answered 503"),
        (504, b'{"error":"late"}', CODES.DEADLINE_EXCEEDED, "late"),
        (418, b"<html>", CODES.UNKNOWN, "the worker answered 418"),
        (200, b'{"model_name":"digits"}', CODES.INTERNAL, "the worker answered with something that is no message"),
        (500, b'{"error":"' + b"x" * 100_000 + b'"}', CODES.INTERNAL, "the worker answered 500"),
    ],
)
def test_a_workers_error_keeps_its_text_and_release(client: GrpcClient, node: Node, case: tuple[int, bytes, grpc.StatusCode, str]) -> None:
    status, body, code, text = case
    node.status, node.body, node.content_type = status, body, "application/json"
    node.response_headers = {"retry-after": "7"}
    done = infer(client)
    assert (done.code, done.details) == (code, text)
    assert (done.headers["x-modelway-version"], done.headers["x-modelway-release"]) == ("1", "1")
    assert done.headers["retry-after"] == "7"
    assert done.headers["x-request-id"]


def test_an_error_that_calls_itself_a_message_is_an_error(client: GrpcClient, node: Node) -> None:
    node.status = 500
    assert infer(client).code is CODES.INTERNAL


def test_an_empty_message_is_a_message(client: GrpcClient, node: Node) -> None:
    node.body = b""
    assert infer(client).message == pb.ModelInferResponse()


def test_a_large_message_passes_and_one_above_the_limit_is_refused(client: GrpcClient, node: Node) -> None:
    node.body = pb.ModelInferResponse(raw_output_contents=[bytes(3 << 20)]).SerializeToString()
    done = client.send(pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(MAX_BODY_BYTES - 100)]).SerializeToString())
    assert done.code is CODES.OK
    assert done.message == node.body
    done = client.send(pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(MAX_BODY_BYTES)]).SerializeToString())
    assert (done.code, done.details) == (CODES.RESOURCE_EXHAUSTED, "the request body is larger than 1 MiB; send a smaller batch")


def test_no_worker_is_unavailable(envoy: RunningEnvoy, client: GrpcClient, node: Node) -> None:
    envoy.gateway.apply(live(backend(1, envoy.sockets / "nobody.sock")))
    done = infer(client)
    assert (done.code, done.details) == (CODES.UNAVAILABLE, "no worker of the model answers; ask again later")
    assert (done.headers["retry-after"], done.headers["x-modelway-release"]) == ("1", "1")


def test_the_platforms_timeout_holds_without_a_deadline_and_above_one(client: GrpcClient, node: Node) -> None:
    node.delay_s = 4.0
    for timeout_s in (None, 30.0):
        done = client.call("ModelInfer", infer_request("digits", ROWS), timeout_s=timeout_s)  # type: ignore[arg-type]
        assert (done.code, done.details[:28]) == (CODES.DEADLINE_EXCEEDED, "the model did not answer bef")


@pytest.mark.parametrize(
    "case",
    [
        ("200m", "4", "did not answer before the deadline"),
        ("200000u", "4", "did not answer before the deadline"),
        ("0S", "4", "the deadline is over"),
        ("1 S", "3", "grpc-timeout"),
        ("123456789S", "3", "grpc-timeout"),
        ("5x", "3", "grpc-timeout"),
    ],
)
def test_the_gateway_keeps_the_deadline_of_a_client_that_does_not(
    envoy: RunningEnvoy, node: Node, tmp_path: Path, case: tuple[str, str, str]
) -> None:
    deadline, status, words = case
    node.delay_s = 1.0
    message = infer_request("digits", ROWS).SerializeToString()
    (tmp_path / "frame").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    url = f"{envoy.url}/{SERVICE}/ModelInfer"
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-H", f"grpc-timeout: {deadline}"]
    argv = ["curl", "-sS", "-D", "-", "-o", str(tmp_path / "body"), "--http2-prior-knowledge", *headers]
    done = subprocess.run([*argv, "--data-binary", f"@{tmp_path / 'frame'}", url], capture_output=True, text=True, timeout=30, check=True)
    answered = dict(line.partition(": ")[::2] for line in done.stdout.splitlines())
    assert answered["grpc-status"] == status, done.stdout
    assert words in answered["grpc-message"]


def test_several_calls_share_a_connection(client: GrpcClient, node: Node) -> None:
    node.delay_s = 0.3
    calls = [client.stub.ModelInfer.future(infer_request("digits", ROWS, id=str(n)), timeout=30) for n in range(8)]
    assert all(call.result() == ANSWER for call in calls)
    assert len(node.requests) == 8


# --- what is not there, and who may not


def test_other_methods_and_services_are_unimplemented(client: GrpcClient, node: Node) -> None:
    for path in (f"/{SERVICE}/ModelConfig", f"/{SERVICE}/", f"/{SERVICE}/modelinfer", "/other.Service/ModelInfer", "/ServerLive"):
        done = outcome(client.channel.unary_unary(path), b"", 30, ())
        assert (done.code, done.details) == (CODES.UNIMPLEMENTED, f"no such gRPC method. {SERVICE} has {', '.join(METHODS)}."), path


def test_a_stream_that_never_ends_is_refused_at_once(client: GrpcClient, node: Node) -> None:
    ended = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield infer_request("digits", ROWS)
        ended.wait(60)

    call = client.stub.ModelStreamInfer(requests(), timeout=30)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    finally:
        ended.set()
    assert caught.value.code() is CODES.UNIMPLEMENTED


def test_a_compressed_message_is_unimplemented(client: GrpcClient, node: Node) -> None:
    done = client.call("ModelInfer", infer_request("digits", np.zeros((100, 4), np.float32)), compression=grpc.Compression.Gzip)
    assert (done.code, done.details) == (CODES.UNIMPLEMENTED, "compressed messages are not supported; send grpc-encoding: identity")


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "grpc.modelway"},
        {"host": "grpc.modelway", "x-modelway-grpc": "ServerLive"},
        {"host": "grpc.modelway", "x-modelway-grpc": "ServerLive", "content-type": "application/grpc"},
        {"host": "GRPC.MODELWAY", "X-Modelway-Grpc": "ServerLive"},
    ],
)
def test_no_client_gets_behind_the_filters(envoy: RunningEnvoy, node: Node, protocol: str, headers: dict[str, str]) -> None:
    for path in ("/ServerLive", "/v2/models/digits/ready", "/v2/models/digits/metadata", "/v2/models/digits/infer"):
        argv = ["curl", "-sS", "-X", "POST", protocol, "-D", "-", *(f"-H{name}: {value}" for name, value in headers.items())]
        done = subprocess.run([*argv, f"{envoy.url}{path}"], capture_output=True, text=True, timeout=30, check=True)
        refused = "HTTP/2 404" in done.stdout or "HTTP/1.1 404" in done.stdout or "grpc-status: 5" in done.stdout
        assert refused, done.stdout
    assert not node.requests


def test_a_rest_client_cannot_choose_the_decoder(envoy: RunningEnvoy, node: Node) -> None:
    httpx.post(f"{envoy.url}/v2/models/digits/infer", headers={"x-modelway-protocol": "v2-grpc", "x-modelway-grpc": "x"}, content=b"{}")
    (seen,) = node.requests
    assert seen.headers["x-modelway-protocol"] == "v2-infer"
    assert "x-modelway-grpc" not in seen.headers


def test_rest_on_the_services_paths_is_told_so(envoy: RunningEnvoy, node: Node) -> None:
    url = f"{envoy.url}/{SERVICE}/ModelInfer"
    assert httpx.post(url, content=b"{}", headers={"content-type": "application/json"}).status_code == 415
    assert httpx.get(url).status_code == 405
    over_http1 = httpx.post(url, content=b"\0\0\0\0\0", headers={"content-type": "application/grpc"})
    assert (over_http1.headers["grpc-status"], over_http1.headers["grpc-message"][:16]) == ("3", "gRPC needs HTTP/")
    assert not node.requests


def test_rest_requests_do_not_meet_the_filters(envoy: RunningEnvoy, client: GrpcClient, node: Node) -> None:
    def executions() -> int:
        lines = envoy.gateway.metrics_text().splitlines()
        return sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith("envoy_") and "lua_executions" in line)

    before = executions()
    for _ in range(10):
        httpx.post(f"{envoy.url}/v2/models/digits/infer", content=b"{}")
        httpx.get(f"{envoy.url}/v2/models/digits")
    assert executions() == before
    infer(client)
    assert executions() > before


def test_keys_hold_for_grpc_and_for_the_model_in_the_message(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "api-keys.toml")
    words = {}
    for name, limits in (("all", {}), ("narrow", {"models": ("other",)}), ("slow", {"requests_per_s": 0.001, "burst": 1})):
        key, words[name] = new_key(name, **limits)  # type: ignore[arg-type]
        file.add(key)
    with RunningEnvoy(api_keys=file) as envoy, Node(envoy.sockets / "a.sock") as node, GrpcClient(envoy.config.port) as client:
        envoy.gateway.apply(table(node))

        def code(method: str, request: object, word: str = "", header: str = "x-api-key") -> grpc.StatusCode:
            return client.call(method, request, metadata=[(header, word)] if word else []).code

        ask, other = infer_request("digits", ROWS), infer_request("other", ROWS)
        assert code("ModelInfer", ask) is CODES.UNAUTHENTICATED
        assert code("ModelInfer", ask, "wrong") is CODES.UNAUTHENTICATED
        assert code("ModelMetadata", pb.ModelMetadataRequest(name="digits")) is CODES.UNAUTHENTICATED
        assert not node.requests
        assert code("ModelInfer", ask, words["all"]) is CODES.OK
        assert code("ModelInfer", ask, f"Bearer {words['all']}", "authorization") is CODES.OK
        assert not any(words["all"] in value for request in node.requests for value in request.headers.values())
        node.requests.clear()
        assert code("ModelInfer", ask, words["narrow"]) is CODES.PERMISSION_DENIED
        assert code("ModelInfer", infer_request("digits", ROWS, version="2"), words["narrow"]) is CODES.PERMISSION_DENIED
        assert code("ModelMetadata", pb.ModelMetadataRequest(name="digits"), words["narrow"]) is CODES.PERMISSION_DENIED
        assert code("ModelReady", pb.ModelReadyRequest(name="digits"), words["narrow"]) is CODES.PERMISSION_DENIED
        assert not node.requests
        assert code("ModelInfer", other, words["narrow"]) is CODES.OK
        assert code("ModelInfer", ask, words["slow"]) is CODES.OK
        assert code("ModelInfer", ask, words["slow"]) is CODES.RESOURCE_EXHAUSTED
        assert code("ServerLive", pb.ServerLiveRequest()) is CODES.OK
        assert code("ServerReady", pb.ServerReadyRequest()) is CODES.OK


def test_grpc_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    pair = authority.issue()
    with RunningEnvoy(tls_certificate=pair.certificate, tls_key=pair.key) as envoy, Node(envoy.sockets / "a.sock") as node:
        envoy.gateway.apply(table(node))
        trusted = grpc.ssl_channel_credentials(authority.file.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{envoy.config.port}", trusted) as channel:
            message = infer_request("digits", ROWS).SerializeToString()
            assert outcome(channel.unary_unary(f"/{SERVICE}/ModelInfer"), message, 30, ()).message == ANSWER.SerializeToString()
