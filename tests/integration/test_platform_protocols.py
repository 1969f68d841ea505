"""Every datatype and form of request through the real gateway, with clients that we did not write.

KServe's package cannot be installed beside ours (its pins exclude our versions), so its requests are written here as its
`InferRequest.to_rest` writes them; TensorFlow Serving's are those of its REST documentation.
"""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest

from modelway import Client
from modelway.composition import open_registry, open_tracking
from registry.names import ModelVersion
from support.bundles import expected_logits
from support.live_platform import ROWS, LivePlatform
from support.typed_bundle import NUMBERS, TEXTS, VALUES, make_typed_bundle

pytestmark = pytest.mark.integration

TOLERANCE = 1e-4
OCTETS = "application/octet-stream"
NO_JSON = ("FP16", "BF16")  # tritonclient refuses to send these as JSON


@pytest.fixture(scope="module")
def numbers(platform: LivePlatform) -> str:
    return serve_typed(platform, "numbers", NUMBERS)


@pytest.fixture(scope="module")
def words(platform: LivePlatform) -> str:
    return serve_typed(platform, "words", TEXTS)


@pytest.fixture(scope="module")
def linear(platform: LivePlatform) -> str:
    platform.register("linear", 1)
    platform.must("promote", "linear/1")
    return "linear"


def serve_typed(platform: LivePlatform, model: str, datatypes: tuple[str, ...]) -> str:
    version = platform.register(model, 1, exported=False)
    root = platform.home.parent / f"bundle-{model}"
    open_registry(open_tracking(platform.settings)).attach_bundle(
        version, make_typed_bundle(root, version=version, datatypes=datatypes).root
    )
    platform.must("promote", str(ModelVersion(model, 1)))
    return model


def curl(platform: LivePlatform, path: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", *arguments, f"{platform.settings.gateway_url}{path}"],
        capture_output=True,
        check=True,
        timeout=30,
    )


# --- tritonclient


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("kind", ["numbers", "words"])
def test_tritonclient_sends_and_gets_every_datatype(
    platform: LivePlatform, request: pytest.FixtureRequest, kind: str, binary_in: bool, binary_out: bool
):
    from tritonclient import http

    model = request.getfixturevalue(kind)
    datatypes = NUMBERS if kind == "numbers" else TEXTS
    client = http.InferenceServerClient(url=platform.settings.gateway_url.removeprefix("http://"))
    try:
        inputs = []
        for datatype in datatypes:
            tensor = http.InferInput(datatype.lower(), [1, 2], datatype)
            values = VALUES[datatype].astype(ml_dtypes.bfloat16) if datatype == "BF16" else VALUES[datatype]
            tensor.set_data_from_numpy(values, binary_data=binary_in or datatype in NO_JSON)
            inputs.append(tensor)
        outputs = [http.InferRequestedOutput(f"{datatype.lower()}_out", binary_data=binary_out) for datatype in reversed(datatypes)]
        result = client.infer(model, inputs, outputs=outputs, request_id="of-mine")
        assert result.get_response()["id"] == "of-mine"
        assert [output["name"] for output in result.get_response()["outputs"]] == [output.name() for output in outputs]
        for datatype in datatypes:
            got = result.as_numpy(f"{datatype.lower()}_out")
            if datatype == "BYTES":
                got = np.array([value.decode() if isinstance(value, bytes) else value for value in got.ravel()], object).reshape(got.shape)
            np.testing.assert_array_equal(got.astype(VALUES[datatype].dtype), VALUES[datatype], err_msg=datatype)
    finally:
        client.close()


def test_tritonclient_asks_without_naming_outputs_and_in_one_connection(platform: LivePlatform, linear: str):
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    client = http.InferenceServerClient(url=platform.settings.gateway_url.removeprefix("http://"), concurrency=4)
    try:
        pending = []
        for row in ROWS:
            tensor = http.InferInput("input", [1, 4], "FP32")
            tensor.set_data_from_numpy(row[None])
            pending.append(client.async_infer(linear, [tensor]))
        for row, answer in zip(ROWS, pending, strict=True):
            np.testing.assert_allclose(
                answer.get_result().as_numpy("logits")[0], expected_logits(row[None], weights_seed=1)[0], atol=TOLERANCE
            )
        wrong = http.InferInput("input", [1, 3], "FP32")
        wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
        with pytest.raises(InferenceServerException, match="expected shape"):
            client.infer(linear, [wrong])
    finally:
        client.close()


# --- KServe


def kserve_request(datatypes: tuple[str, ...], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """As kserve 0.21's `InferRequest.to_rest` and its REST client write it."""
    inputs, raw = [], b""
    for datatype in datatypes:
        entry: dict[str, Any] = {"name": datatype.lower(), "shape": [1, 2], "datatype": datatype}
        if datatype != "BF16" and (binary or datatype == "FP16"):  # numpy, which it packs with, has no bfloat16
            blob = VALUES[datatype].tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            raw += blob
        else:
            entry["data"] = VALUES[datatype].ravel().tolist()
        inputs.append(entry)
    head = json.dumps({"id": str(uuid.uuid4()), "model_name": "numbers", "inputs": inputs}).encode()
    if not raw:
        return head, {"content-type": "application/json"}
    return head + raw, {"content-type": OCTETS, "inference-header-content-length": str(len(head))}


@pytest.mark.parametrize("binary", [True, False])
def test_kserves_requests_are_answered(platform: LivePlatform, numbers: str, binary: bool):
    content, headers = kserve_request(NUMBERS, binary=binary)
    response = httpx.post(f"{platform.settings.gateway_url}/v2/models/{numbers}/infer", content=content, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["id"]
    for datatype, output in zip(NUMBERS, response.json()["outputs"], strict=True):
        np.testing.assert_array_equal(np.array(output["data"], VALUES[datatype].dtype).reshape(output["shape"]), VALUES[datatype])
    del headers["content-type"], headers["inference-header-content-length"]
    response = httpx.post(f"{platform.settings.gateway_url}/v2/models/{numbers}/infer", content=content, headers=headers)
    assert response.status_code == 400, "binary data without the length of the JSON before it"


# --- TensorFlow Serving


def test_tensorflow_servings_shapes_are_answered(platform: LivePlatform, words: str, linear: str):
    url = f"{platform.settings.gateway_url}/v1/models/{words}:predict"
    coded = {"b64": base64.b64encode("a: é".encode()).decode()}
    row = {"bytes": [coded, ""], "fp32": [1.5, 2], "bool": [True, False]}
    answer = httpx.post(url, json={"signature_name": "serving_default", "instances": [row, row]})
    assert answer.json() == {"predictions": [{"bytes_out": ["a: é", ""], "fp32_out": [1.5, 2.0], "bool_out": [True, False]}] * 2}
    columns = {name: [value] for name, value in row.items()}
    answer = httpx.post(url, json={"inputs": columns})
    assert answer.json() == {"outputs": {"bytes_out": [["a: é", ""]], "fp32_out": [[1.5, 2.0]], "bool_out": [[True, False]]}}
    assert httpx.post(url, json={"signature_name": "other", "instances": [row]}).status_code == 400
    status = httpx.get(f"{platform.settings.gateway_url}/v1/models/{linear}").json()
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert httpx.get(f"{platform.settings.gateway_url}/v1/models/{linear}/metadata").json()["model_spec"]["name"] == linear


# --- curl, raw bytes and negotiation


def test_curl_as_it_is_typed(platform: LivePlatform, linear: str):
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": ROWS[0].tolist()}
    done = curl(platform, f"/v2/models/{linear}/infer", "-H", "content-type: application/json", "-d", json.dumps({"inputs": [tensor]}))
    want = expected_logits(ROWS[:1], weights_seed=1)
    np.testing.assert_allclose(json.loads(done.stdout)["outputs"][0]["data"], want[0], atol=TOLERANCE)
    done = curl(platform, f"/v1/models/{linear}:predict", "-d", json.dumps({"instances": ROWS[:1].tolist()}))
    np.testing.assert_allclose(json.loads(done.stdout)["predictions"], want, atol=TOLERANCE)


@pytest.mark.parametrize("path", ["/predictions/{m}", "/v1/models/{m}:predict", "/v2/models/{m}/infer"])
def test_raw_bytes_in_and_out(platform: LivePlatform, linear: str, path: str, tmp_path):
    (tmp_path / "rows").write_bytes(ROWS.tobytes())
    done = curl(
        platform,
        path.format(m=linear),
        "--data-binary",
        f"@{tmp_path / 'rows'}",
        "-H",
        f"content-type: {OCTETS}",
        "-H",
        "Inference-Header-Content-Length: 0",
        "-H",
        f"accept: {OCTETS}",
    )
    want = expected_logits(ROWS, weights_seed=1)
    np.testing.assert_allclose(np.frombuffer(done.stdout[-want.nbytes :], np.float32).reshape(want.shape), want, atol=TOLERANCE)
    assert (len(done.stdout) == want.nbytes) is ("v2" not in path)


@pytest.mark.parametrize(
    "case",
    [
        ({"content-type": "text/plain"}, b"[[1,2,3,4]]", 415, "content-type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"[[1,2,3,4]]", 415, "content-encoding"),
        ({"content-type": "application/json", "accept": "text/html"}, b"[[1,2,3,4]]", 406, "accept"),
        ({"content-type": "application/json"}, b'{"instances":[[1,2,3,4]],"instances":[[1,2,3,4]]}', 400, "twice"),
        ({"content-type": "application/json"}, json.dumps([[0] * 4] * 1025).encode(), 413, "too many rows"),
        ({"content-type": OCTETS}, b"123", 400, "multiple of 16 bytes"),
        ({"content-type": OCTETS}, np.float32([1, 2, 3, np.nan]).tobytes(), 400, "NaN"),
    ],
)
def test_what_cannot_be_answered_says_why(platform: LivePlatform, linear: str, case: tuple[dict[str, str], bytes, int, str]):
    headers, body, status, words = case
    response = httpx.post(f"{platform.settings.gateway_url}/predictions/{linear}", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert words in response.json()["error"]


def test_our_own_client_passes_text(platform: LivePlatform, words: str):
    with Client(platform.settings.gateway_url) as client:
        inputs = {"bytes": np.array([["é", "b"]]), "fp32": VALUES["FP32"], "bool": VALUES["BOOL"]}
        got = client.infer(words, inputs)
        assert got["bytes_out"].tolist() == [["é", "b"]]
        np.testing.assert_array_equal(got["fp32_out"], VALUES["FP32"])
