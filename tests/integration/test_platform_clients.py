"""What clients see: foreign and own clients, and every answer that a gateway may give; with the real engines."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from modelway import Client
from registry.errors import NotFound, UsageError
from support.bundles import expected_logits
from support.live_platform import ROWS, LivePlatform

pytestmark = pytest.mark.integration

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def served(platform: LivePlatform) -> str:
    """A model whose version 1 is live in production and whose version 2 is live in staging."""
    platform.register("served", 1)
    platform.register("served", 2)
    platform.must("promote", "served/1")
    platform.must("promote", "served/2", "--to", "staging")
    return "served"


def test_tritonclient_in_json_mode_gets_the_models_numbers(platform: LivePlatform, served: str):
    from tritonclient import http

    client = http.InferenceServerClient(url=platform.settings.gateway_url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(served)
        metadata = client.get_model_metadata(served)
        assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
        wanted = http.InferInput("input", list(ROWS.shape), "FP32")
        wanted.set_data_from_numpy(ROWS, binary_data=False)
        result = client.infer(served, [wanted], outputs=[http.InferRequestedOutput("logits", binary_data=False)], request_id="seven")
        assert result.get_response()["id"] == "seven"
        np.testing.assert_allclose(result.as_numpy("logits"), expected_logits(ROWS, weights_seed=1), atol=TOLERANCE)
    finally:
        client.close()


def test_the_python_client_takes_and_gives_arrays(platform: LivePlatform, served: str):
    with Client(platform.settings.gateway_url) as client:
        np.testing.assert_allclose(client.infer(served, ROWS), expected_logits(ROWS, weights_seed=1), atol=TOLERANCE)
        answer = client.infer_traced(served, {"input": ROWS[:1]})
        assert answer.version == "1"
        assert answer.request_id
        with pytest.raises(NotFound, match="no-such-model"):
            client.infer("no-such-model", ROWS)
        with pytest.raises(UsageError, match="input"):
            client.infer(served, ROWS[:, :3])
    with Client(platform.settings.gateway_url, channel="staging") as client:
        np.testing.assert_allclose(client.infer(served, ROWS), expected_logits(ROWS, weights_seed=2), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/predictions/{m}", ROWS.tolist(), lambda answer: answer),
        ("/predictions/{m}/1", ROWS.tolist(), lambda answer: answer),
        ("/v1/models/{m}:predict", {"instances": ROWS.tolist()}, lambda answer: answer["predictions"]),
        ("/v1/models/{m}/versions/1:predict", {"inputs": {"input": ROWS.tolist()}}, lambda answer: answer["outputs"]),
    ],
)
def test_every_protocol_gives_the_same_numbers(platform: LivePlatform, served: str, path: str, body, read):
    response = httpx.post(f"{platform.settings.gateway_url}{path.format(m=served)}", json=body)
    assert response.status_code == 200, response.text
    np.testing.assert_allclose(read(response.json()), expected_logits(ROWS, weights_seed=1), atol=TOLERANCE)
    assert response.headers["x-modelway-version"] == "1"
    assert response.headers["x-modelway-release"].isdigit()
    assert response.headers["x-request-id"]


def tensor(**changes):
    good = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
    return json.dumps({"inputs": [{**good, **changes}]})


@pytest.mark.parametrize(
    "request_case",
    [
        ("/v2/models/{m}/infer", "{", 400, "JSON"),
        ("/v2/models/{m}/infer", tensor(data=["x"] * 4), 400, "input"),
        ("/v2/models/{m}/infer", tensor(shape=[1, 5], data=[1.0] * 5), 400, "[1, 5]"),
        ("/v2/models/{m}/infer", tensor(shape=[2, 4]), 400, "input"),
        ("/v2/models/{m}/infer", tensor(datatype="INT64"), 400, "INT64"),
        ("/v2/models/{m}/infer", tensor(name="other"), 400, "expected input"),
        ("/v2/models/{m}/infer", tensor(shape=[-1, 4]), 400, "input"),
        ("/v2/models/{m}/infer", tensor(shape=[0, 4], data=[]), 400, "input"),
        ("/v2/models/{m}/infer", tensor().replace("1.0", "NaN"), 400, "JSON"),
        ("/v2/models/{m}/infer", "[" * 5000, 400, "JSON"),
        ("/v2/models/nothing/infer", tensor(), 404, "Models: "),
        ("/v2/models/{m}/versions/9/infer", tensor(), 404, "Versions: 1, 2"),
        ("/nowhere", tensor(), 404, ""),
    ],
)
def test_a_bad_request_gets_its_own_4xx_with_a_reason(platform: LivePlatform, served: str, request_case: tuple[str, str, int, str]):
    path, body, status, words = request_case
    url = f"{platform.settings.gateway_url}{path.format(m=served)}"
    response = httpx.post(url, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert words in response.json()["error"]
    assert "Traceback" not in response.text


def test_an_unknown_channel_is_named(platform: LivePlatform, served: str):
    response = platform.ask(served, **{"x-modelway-channel": "nightly"})
    assert response.status_code == 404
    assert "nightly" in response.json()["error"]


def test_predict_reads_files_and_stdin(platform: LivePlatform, served: str, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    answer = platform.must("predict", f"{served}@staging", "--input", str(tmp_path / "rows.npy"))
    assert answer["version"] == "2"
    np.testing.assert_allclose(answer["outputs"]["logits"], expected_logits(ROWS, weights_seed=2), atol=TOLERANCE)
