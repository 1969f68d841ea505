"""tritonclient's gRPC client, unchanged, against the real platform: numbers, errors, load, promotion and rollback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from support.bundles import expected_logits
from support.grpc_stub import GrpcClient, infer_request, logits_of
from support.live_platform import ROWS, LivePlatform
from support.polling import wait_until

pytestmark = pytest.mark.integration

TOLERANCE = 1e-4
CODES = grpc.StatusCode


@pytest.fixture(scope="module")
def served(platform: LivePlatform) -> str:
    """A model whose version 1 is live in production and whose version 2 is live in staging."""
    platform.register("served", 1)
    platform.register("served", 2)
    platform.must("promote", "served/1")
    platform.must("promote", "served/2", "--to", "staging")
    return "served"


@pytest.fixture(scope="module")
def client(platform: LivePlatform, served: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{platform.settings.gateway_port}") as opened:
        yield opened


def rows_input(rows: np.ndarray = ROWS, datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("input", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows)
    return tensor


def test_tritonclient_finds_the_server_and_its_model(client: triton.InferenceServerClient, served: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(served)
    assert client.is_model_ready(served, "2")
    assert client.get_server_metadata().name == "modelway"
    metadata = client.get_model_metadata(served)
    assert list(metadata.versions) == ["1", "2"]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", "FP32", [-1, 4])]
    as_json = client.get_model_metadata(served, as_json=True)
    assert as_json["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "3"]}]


def test_tritonclient_gets_the_models_numbers(client: triton.InferenceServerClient, served: str) -> None:
    outputs = [triton.InferRequestedOutput("logits")]
    result = client.infer(served, [rows_input()], request_id="seven", outputs=outputs)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (served, "1", "seven")
    np.testing.assert_allclose(result.as_numpy("logits"), expected_logits(ROWS, weights_seed=1), atol=TOLERANCE)
    result = client.infer(served, [rows_input()], model_version="2")
    np.testing.assert_allclose(result.as_numpy("logits"), expected_logits(ROWS, weights_seed=2), atol=TOLERANCE)
    result = client.infer(served, [rows_input()], headers={"x-modelway-channel": "staging"})
    assert result.get_response().model_version == "2"


def test_typed_contents_are_answered_with_typed_contents(platform: LivePlatform, served: str) -> None:
    with GrpcClient(platform.settings.gateway_port) as stub:
        done = stub.call("ModelInfer", infer_request(served, ROWS, raw=False), metadata=[("x-request-id", "mine")])
    assert done.code is CODES.OK, done
    assert not done.message.raw_output_contents
    np.testing.assert_allclose(logits_of(done.message), expected_logits(ROWS, weights_seed=1), atol=TOLERANCE)
    assert (done.headers["x-modelway-version"], done.headers["x-request-id"]) == ("1", "mine")
    assert done.headers["x-modelway-release"].isdigit()


def test_the_asynchronous_client_works_too(platform: LivePlatform, served: str) -> None:
    import asyncio

    from tritonclient.grpc import aio

    async def ask() -> list[np.ndarray]:
        async with aio.InferenceServerClient(f"127.0.0.1:{platform.settings.gateway_port}") as opened:
            results = await asyncio.gather(*(opened.infer(served, [rows_input(ROWS[n : n + 1])]) for n in range(16)))
            return [result.as_numpy("logits") for result in results]

    np.testing.assert_allclose(np.concatenate(asyncio.run(ask())), expected_logits(ROWS[:16], weights_seed=1), atol=TOLERANCE)


def wrong_name() -> triton.InferInput:
    tensor = triton.InferInput("other", [1, 4], "FP32")
    return tensor.set_data_from_numpy(ROWS[:1])


def wrong_count() -> triton.InferInput:
    tensor = rows_input(ROWS[:1])
    tensor.set_shape([2, 4])
    return tensor


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (lambda: rows_input(ROWS[:1].astype(np.int64), "INT64"), "StatusCode.INVALID_ARGUMENT", "expected datatype FP32, got INT64"),
        (lambda: rows_input(np.zeros((1, 5), np.float32)), "StatusCode.INVALID_ARGUMENT", "[1, 5]"),
        (lambda: rows_input(np.full((1, 4), np.nan, np.float32)), "StatusCode.INVALID_ARGUMENT", "NaN"),
        (wrong_name, "StatusCode.INVALID_ARGUMENT", "expected input"),
        (wrong_count, "StatusCode.INVALID_ARGUMENT", "expected 32 bytes"),
        (lambda: rows_input(np.zeros((100_000, 4), np.float32)), "StatusCode.RESOURCE_EXHAUSTED", "too many rows"),
    ],
)
def test_a_bad_request_is_told_why(
    client: triton.InferenceServerClient, served: str, make: Callable[[], triton.InferInput], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(served, [make()])
    assert caught.value.status() == status
    assert words in caught.value.message()


def test_a_message_above_the_limit_is_told_so(platform: LivePlatform, client: triton.InferenceServerClient, served: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(served, [rows_input(np.zeros((platform.settings.max_body_bytes // 16, 4), np.float32))])
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert f"larger than {platform.settings.max_body_bytes >> 20} MiB" in caught.value.message()


def test_unknown_models_and_versions_are_not_found(client: triton.InferenceServerClient, served: str) -> None:
    for model, version, words in (("nothing", "", "Models: "), (served, "9", "Versions: 1, 2")):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [rows_input()], model_version=version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        assert words in caught.value.message()
        with pytest.raises(InferenceServerException):
            client.is_model_ready(model, version)


def test_other_methods_are_unimplemented(client: triton.InferenceServerClient) -> None:
    for call in (client.get_model_repository_index, client.get_inference_statistics, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_eight_at_a_time_on_one_channel_get_their_own_answers(platform: LivePlatform, served: str) -> None:
    expected = expected_logits(ROWS, weights_seed=1)
    with GrpcClient(platform.settings.gateway_port) as stub, ThreadPoolExecutor(8) as pool:

        def ask(n: int) -> bool:
            done = stub.call("ModelInfer", infer_request(served, ROWS[n % 32][None], id=str(n)))
            return done.message.id == str(n) and np.allclose(logits_of(done.message), expected[n % 32], atol=TOLERANCE)

        assert all(pool.map(ask, range(400)))


@dataclass
class Failure:
    code: str
    details: str


class Load:
    """Closed-loop gRPC load from four threads on one channel; every answer is held against the version that it names."""

    def __init__(self, platform: LivePlatform, model: str) -> None:
        self._platform, self._model = platform, model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(4)]
        self.failures: list[Failure] = []
        self.versions: list[str] = []
        self._expected = {version: expected_logits(ROWS, weights_seed=int(version)) for version in ("1", "2")}

    def __enter__(self) -> Self:
        self._stub = GrpcClient(self._platform.settings.gateway_port)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._stub.channel.close()

    def _run(self, start: int) -> None:
        item = start
        while not self._stop.is_set():
            item = (item + 1) % 32
            done = self._stub.call("ModelInfer", infer_request(self._model, ROWS[item][None]))
            if done.code is not CODES.OK:
                self.failures.append(Failure(str(done.code), done.details))
                continue
            version = done.headers["x-modelway-version"]
            self.versions.append(version)
            right = np.allclose(logits_of(done.message), self._expected[version][item], atol=TOLERANCE)
            if not right or done.message.model_version != version:
                self.failures.append(Failure("wrong", f"{version}: {done.message}"))

    def wait_for(self, num_answers: int) -> None:
        enough = len(self.versions) + num_answers
        wait_until(lambda: len(self.versions) >= enough or self.failures, timeout_s=60, what="answers")


def test_promotion_and_rollback_under_grpc_load_fail_nothing(platform: LivePlatform, model: str) -> None:
    platform.must("promote", f"{model}/1")
    with Load(platform, model) as load:
        load.wait_for(200)
        platform.must("promote", f"{model}/2", "--strategy", "canary", "--steps", "50%:2s", "--min-samples", "50")
        load.wait_for(50)
        canary_share = load.versions.count("2")
        after_promotion = len(load.versions)
        load.wait_for(200)
        assert set(load.versions[after_promotion + 4 :]) == {"2"}
        platform.must("rollback", model)
        after_rollback = len(load.versions) + 4  # one answer per thread may have been on its way
        load.wait_for(300)
    assert load.failures == []
    assert canary_share > 0
    assert set(load.versions[after_rollback:]) == {"1"}
