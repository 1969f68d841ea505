"""Requests and answers of each form, and what is said when an answer is not of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import setup_environments
from benchmarks.encodings import Encoding, answer, request
from registry.errors import NotFound
from serving.runtime.modelway_runtime.protocols import Decoded, ModelInfo, decode
from serving.runtime.modelway_runtime.tensors import Spec

BATCH = np.float32([[0.1, -2.5, 3e-7]])
LOGITS = np.float32([1.5, -2.0])
JSON_ANSWERS = {
    "protocol": {"outputs": [{"name": "logits", "data": [1.5, -2.0]}]},
    "mlflow": {"predictions": [[1.5, -2.0]]},
    "mlflow-by-name": {"predictions": {"logits": [[1.5, -2.0]]}},
    "list": [1.5, -2.0],
    "rows": [[1.5, -2.0]],
}


@pytest.mark.parametrize("document", JSON_ANSWERS.values(), ids=JSON_ANSWERS)
def test_the_numbers_of_every_json_answer(document: object):
    assert answer(Encoding.V2_JSON, b"HTTP/1.1 200 OK", json.dumps(document).encode()).tolist() == LOGITS.tolist()


def test_the_numbers_of_binary_answers():
    head, described = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 12", b'{"some": 12}'
    assert answer(Encoding.V2_BINARY, head, described + LOGITS.tobytes()).tolist() == LOGITS.tolist()
    assert answer(Encoding.OCTETS, b"HTTP/1.1 200 OK", LOGITS.tobytes()).tolist() == LOGITS.tolist()


@pytest.mark.parametrize("encoding", Encoding)
def test_what_is_no_answer_is_told(encoding: Encoding):
    with pytest.raises(ValueError, match=f"not an answer in {encoding}"):
        answer(encoding, b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 3", b'{"error": "no"}'[:-1])


@pytest.mark.parametrize("encoding", [Encoding.V2_BINARY, Encoding.V2_JSON])
def test_requests_of_the_protocol_are_what_the_runtime_reads(encoding: Encoding):
    inputs, outputs = (Spec("input", "FP32", (-1, 3)),), (Spec("logits", "FP32", (-1, 2)),)
    info = ModelInfo(name="m", version="1", inputs=inputs, outputs=outputs, max_rows=4)
    headers, body = request(encoding, BATCH)
    decoded = decode(info, {"x-modelway-protocol": "v2-infer", **{k.lower(): v for k, v in headers.items()}}, memoryview(body))
    assert isinstance(decoded, Decoded)
    assert np.array_equal(decoded.inputs[0], BATCH)


def test_other_requests_hold_the_same_numbers():
    assert np.frombuffer(request(Encoding.OCTETS, BATCH)[1], np.float32).tolist() == BATCH[0].tolist()
    (row,) = json.loads(request(Encoding.BASE64_JSON, BATCH)[1])["input"]
    assert base64.b64decode(row) == BATCH.tobytes()
    for encoding, name in ((Encoding.MLFLOW_JSON, "inputs"), (Encoding.NAMED_JSON, "input")):
        assert np.array_equal(np.float32(json.loads(request(encoding, BATCH)[1])[name]), BATCH)


def test_an_environment_that_changed_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = tmp_path / "files"
    files.mkdir()
    (files / "some.txt").write_text("")
    monkeypatch.setattr(setup_environments, "_FILES", files)
    monkeypatch.setenv("MODELWAY_BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NotFound, match="make bench-setup"):
        setup_environments.python_of("some")
    assert setup_environments.main([]) == 0
    assert setup_environments.python_of("some").is_file()
    (files / "some.txt").write_text("# another")
    assert not setup_environments.is_built("some")
    assert setup_environments.main(["none"]) == 1
