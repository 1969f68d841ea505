"""Real Envoy in front of a real TorchServe: every protocol reaches the model, with the node's own key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2

from registry.signature import Signature, TensorSpec
from serving.routes import Backend, ChannelRoute, RouteTable
from support.bundles import expected_logits
from support.envoy_process import RunningEnvoy
from support.grpc_stub import GrpcClient, infer_request, logits_of
from support.nodes import RunningNode, make_archive

pytestmark = pytest.mark.integration

X = [[1.0, 2.0, 3.0, 4.0]]
SIGNATURE = Signature((TensorSpec("input", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, 3)),))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("node")
    node = RunningNode(root).start()
    try:
        archive = make_archive(root, 1)
        node.load(archive)
        socket = node.node.inference_socket
        backend = Backend(
            release_id=7,
            model="digits",
            version=1,
            variant="onnx-fp32",
            engine_version=archive.engine_version,
            signature=SIGNATURE,
            sockets=(socket,),
        )
        route = ChannelRoute(model="digits", channel="production", live=7)
        with RunningEnvoy(inference_keys={socket: node.node.inference_key()}) as envoy:
            envoy.gateway.apply(RouteTable(backends=(backend,), channels=(route,)))
            yield envoy.url
            state = envoy.gateway.observe()
            assert state.counters[7].num_requests > 0
    finally:
        node.stop()


def _v2() -> dict[str, object]:
    return {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": X[0]}]}


def _assert_logits(values: object) -> None:
    np.testing.assert_allclose(np.asarray(values).reshape(1, -1), expected_logits(X, weights_seed=1), rtol=1e-4, atol=1e-5)


def test_v2_infer(url: str) -> None:
    response = httpx.post(f"{url}/v2/models/digits/infer", json=_v2(), timeout=30)
    assert (response.status_code, response.headers["x-modelway-release"]) == (200, "7")
    _assert_logits(response.json()["outputs"][0]["data"])


def test_v2_ready_is_asked_of_the_worker(url: str) -> None:
    for path in ("/v2/models/digits/ready", "/v2/models/digits/versions/1/ready"):
        response = httpx.get(url + path, timeout=30)
        assert (response.status_code, response.headers["x-modelway-release"]) == (200, "7"), response.text


def test_grpc_reaches_the_worker_through_torchserve_too(url: str) -> None:
    with GrpcClient(httpx.URL(url).port or 0) as client:
        for raw in (True, False):
            done = client.call("ModelInfer", infer_request("digits", np.array(X, np.float32), raw=raw))
            assert done.code is StatusCode.OK, done
            assert (done.headers["x-modelway-release"], bool(done.message.raw_output_contents)) == ("7", raw)
            _assert_logits(logits_of(done.message))
        refused = client.call("ModelInfer", infer_request("digits", np.zeros((1, 5), np.float32)))
        assert (refused.code, refused.details[:12]) == (StatusCode.INVALID_ARGUMENT, "input input:")
        assert client.call("ModelReady", service_pb2.ModelReadyRequest(name="digits")).message.ready


def test_v1_predict(url: str) -> None:
    response = httpx.post(f"{url}/v1/models/digits:predict", json={"instances": X}, timeout=30)
    assert response.status_code == 200
    _assert_logits(response.json()["predictions"])


def test_predictions(url: str) -> None:
    response = httpx.post(f"{url}/predictions/digits/1", json=X, timeout=30)
    assert response.status_code == 200
    _assert_logits(response.json())


def test_a_bad_request_is_the_clients_fault_and_has_an_error(url: str) -> None:
    response = httpx.post(f"{url}/v2/models/digits/infer", content=b"{", timeout=30)
    assert (response.status_code, list(response.json())) == (400, ["error"])
