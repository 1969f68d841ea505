"""Every datatype and form in which a request may come and an answer go; what is refused; and no input that breaks the decoder."""

from __future__ import annotations

import base64
import json
import logging
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.runtime.modelway_runtime import fast_json, jsons, texts, v2
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.datatypes import NUMPY_DTYPES, from_bf16, to_bf16
from serving.runtime.modelway_runtime.errors import RequestError
from serving.runtime.modelway_runtime.messages import complete
from serving.runtime.modelway_runtime.protocols import Answer, ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec, to_bytes
from support.runtime_echo import LENGTH, OCTETS, PREDICTIONS, V1, V2, Echo, ask, echo, error

# --- datatypes

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, -65504],
    "FP32": [0.1, -3.4e38],
    "FP64": [0.1, -1.7e308],
    "BF16": [1.5, -256],
    "BYTES": ["a: é", ""],
}


def wire(datatype: str, values: list[Any]) -> bytes:
    """Written without the runtime's own code."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)
    if datatype == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return np.array(values, dtype=np.dtype(NUMPY_DTYPES[datatype]).newbyteorder("<")).tobytes()


def test_every_datatype_of_the_protocol_is_there() -> None:
    assert set(VALUES) == set(NUMPY_DTYPES)


@pytest.mark.parametrize("datatype", VALUES)
def test_json_and_binary_say_the_same_in_both_directions(datatype: str) -> None:
    core, values, raw = echo(Spec("x", datatype, (-1, 2))), VALUES[datatype], wire(datatype, VALUES[datatype])
    tensor = {"name": "x", "datatype": datatype, "shape": [1, 2]}
    from_json = {"inputs": [{**tensor, "data": values}]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}).encode()
    from_binary = head + raw
    for body, headers in ((json.dumps(from_json).encode(), V2), (from_binary, {**V2, LENGTH: str(len(head))})):
        (output,) = json.loads(ask(core, body, headers).body)["outputs"]
        assert output["datatype"] == datatype
        np.testing.assert_array_equal(np.array(output["data"], NUMPY_DTYPES[datatype]), np.array(values, NUMPY_DTYPES[datatype]))
    answer = ask(core, {**from_json, "parameters": {"binary_data_output": True}}, V2)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
    assert answer.body[length:] == raw
    assert json.loads(ask(core, [values], PREDICTIONS).body) == json.loads(ask(core, {"instances": [values]}, V1).body)["predictions"]


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (1.00390625, 0x3F80),  # halfway: to the even one below
        (1.01171875, 0x3F82),  # halfway: to the even one above
        (1.0039064, 0x3F81),  # just above halfway
        (-0.0, 0x8000),
        (1e-45, 0x0000),
        (3.4028234663852886e38, 0x7F80),  # the largest float32 is beyond the largest bfloat16
        (float("inf"), 0x7F80),
        (float("nan"), 0x7FC0),
        (float(np.uint32(0x7FFFFFFF).view(np.float32)), 0x7FFF),  # a NaN that rounding would carry into the sign
    ],
)
def test_bf16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert to_bf16(np.float32([value])).tolist() == [bits]


@settings(deadline=None)  # the first example imports torch
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_bf16_agrees_with_torch(values: list[float]) -> None:
    import torch

    expected = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_bf16(to_bf16(np.float32(values))), expected)


def test_what_bf16_cannot_hold_is_refused() -> None:
    core = echo(Spec("x", "BF16", (-1, 1)))
    assert "outside the range of BF16" in error(ask(core, [[3.4028234e38]], PREDICTIONS), 400)
    assert json.loads(ask(core, [[1.0039064]], PREDICTIONS).body) == [[1.0078125]]


# --- BYTES


def test_base64_is_text_in_v1() -> None:
    core = echo(Spec("x", "BYTES", (-1,)))
    coded = {"b64": base64.b64encode("é:{".encode()).decode()}
    assert json.loads(ask(core, {"instances": [coded, "plain"]}, V1).body) == {"predictions": ["é:{", "plain"]}
    assert json.loads(ask(core, {"instances": [{"x": coded}]}, V1).body) == {"predictions": ["é:{"]}
    assert json.loads(ask(core, {"inputs": {"x": [coded]}}, V1).body) == {"outputs": ["é:{"]}
    assert "base64" in error(ask(core, {"instances": [{"b64": "*"}]}, V1), 400)
    assert "base64" in error(ask(core, {"instances": [{"b64": 3}]}, V1), 400)
    assert "UTF-8" in error(ask(core, {"instances": [{"b64": base64.b64encode(b"\xff").decode()}]}, V1), 400)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x05\x00\x00\x00abc", "longer than the data"),
        (b"\x01\x00\x00\x00a\x00", "ends within number 2"),
        (b"\x01\x00\x00\x00a\xff\xff\xff\xff", "longer than the data"),
        (wire("BYTES", ["a", "b", "c"]), "5 bytes are left after 2"),
        (b"\x01\x00\x00\x00\xff" + wire("BYTES", ["a"]), "UTF-8"),
    ],
)
def test_broken_binary_text_is_refused(raw: bytes, message: str) -> None:
    head = json.dumps({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}]}).encode()
    answer = ask(echo(Spec("x", "BYTES", (-1,))), head + raw, {**V2, LENGTH: str(len(head))})
    assert message in error(answer, 400)


def test_too_many_texts_are_refused_before_they_are_made() -> None:
    core = echo(Spec("x", "BYTES", (-1, -1)), max_rows=1)
    number = texts.MAX_TEXTS + 1
    assert "at most" in error(ask(core, [[""] * number], PREDICTIONS), 413)
    raw = b"\0" * 4 * number
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, number], "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    assert "at most" in error(ask(core, head + raw, {**V2, LENGTH: str(len(head))}), 413)


# --- v2's options


def two_inputs(of: Core, entries: list[dict[str, Any]], blobs: bytes, **more: Any) -> Answer:
    head = json.dumps({"inputs": entries, **more}).encode()
    return ask(of, head + blobs, {**V2, LENGTH: str(len(head))})


def test_blobs_follow_the_order_of_the_entries_both_ways() -> None:
    core = echo(Spec("a", "INT32", (-1,)), Spec("b", "INT32", (-1,)))
    entries = [{"name": name, "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4, "mine": [1]}} for name in ("b", "a")]
    blobs = struct.pack("<ii", 20, 10)
    answer = two_inputs(
        core,
        entries,
        blobs,
        id="é",
        parameters={"binary_data_output": True, "mine": {"x": 1}},
        outputs=[{"name": "b_out"}, {"name": "a_out", "parameters": {"binary_data": False}}],
    )
    length = int(answer.headers["Inference-Header-Content-Length"])
    head = json.loads(answer.body[:length])
    assert head["id"] == "é"
    assert [output["name"] for output in head["outputs"]] == ["b_out", "a_out"]
    assert head["outputs"][1]["data"] == [10]
    assert answer.body[length:] == struct.pack("<i", 20)
    both = two_inputs(core, entries, blobs, outputs=[{"name": n, "parameters": {"binary_data": True}} for n in ("a_out", "b_out")])
    assert both.body[-8:] == struct.pack("<ii", 10, 20)
    mixed = [{**entries[0]}, {"name": "a", "datatype": "INT32", "shape": [1], "data": [7]}]
    assert [o["data"] for o in json.loads(two_inputs(core, mixed, blobs[:4]).body)["outputs"]] == [[7], [20]]


def test_a_remembered_head_does_not_remember_data_or_what_the_client_accepts() -> None:
    core = echo(Spec("a", "INT32", (-1,)))
    entry = {"name": "a", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [entry]}).encode()
    for value in (1, 2, 3):
        answer = ask(core, head + struct.pack("<i", value), {**V2, LENGTH: str(len(head))})
        assert json.loads(answer.body)["outputs"][0]["data"] == [value]
    accepted = ask(core, head + struct.pack("<i", 4), {**V2, LENGTH: str(len(head)), "accept": OCTETS})
    assert accepted.body.endswith(struct.pack("<i", 4))
    assert "more than the 3 bytes" in error(ask(core, head + b"abc", {**V2, LENGTH: str(len(head))}), 400)


def test_what_is_remembered_is_bounded() -> None:
    model = ModelInfo("m", "1", (Spec("a", "INT32", (-1,)),), (Spec("a_out", "INT32", (-1,)),), 64)
    core = Core(model, Echo("a_out"))
    for number in range(3 * v2._MAX_REMEMBERED):
        entry = {"name": "a", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4, "n": number}}
        assert two_inputs(core, [entry], b"\0" * 4).status == 200
        assert len(model.memory) <= v2._MAX_REMEMBERED
    before = len(model.memory)
    assert two_inputs(core, [{**entry, "parameters": {"binary_data_size": 4, "n": "x" * 5000}}], b"\0" * 4).status == 200
    assert two_inputs(core, [{**entry, "name": "b"}], b"\0" * 4).status == 400
    assert len(model.memory) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 3}, "request: parameters must be an object"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"outputs": [{"name": "a_out", "parameters": {"binary_data": "yes"}}]}, "binary_data must be true or false"),
        ({"outputs": [{"name": "a_out", "parameters": {"classification": 2}}]}, "classification is for outputs with labels"),
        ({"outputs": [{"name": "a_out", "parameters": {"shared_memory_region": "r"}}]}, "shared_memory_region is not supported"),
        ({"outputs": {}}, '"outputs" must be an array'),
        ({"outputs": [{"name": "a_out"}] * 2}, "names a tensor twice"),
        ({"id": "x" * 257}, "id must be"),
    ],
)
def test_options_that_mean_something_else_are_refused(change: dict[str, Any], message: str) -> None:
    tensor = {"name": "a", "datatype": "INT32", "shape": [1], "data": [1]}
    assert message in error(ask(echo(Spec("a", "INT32", (-1,))), {"inputs": [tensor], **change}, V2), 400)


# --- content types

ROW = Spec("x", "FP32", (-1, 2))
ROWS = np.float32([[1, 2], [3, 4]])


@pytest.mark.parametrize("headers", [V2, V1, PREDICTIONS], ids=["v2", "v1", "predictions"])
def test_a_raw_body_is_the_rows_of_the_one_input(headers: dict[str, str]) -> None:
    raw = {**headers, "content-type": OCTETS, "accept": "application/json"}
    answer = json.loads(ask(echo(ROW), ROWS.tobytes(), raw).body)
    values = answer if isinstance(answer, list) else answer.get("predictions") or answer["outputs"][0]["data"]
    assert np.ravel(values).tolist() == [1, 2, 3, 4]
    assert "multiple of 8 bytes" in error(ask(echo(ROW), ROWS.tobytes()[:-1], raw), 400)
    assert "multiple of 8 bytes" in error(ask(echo(ROW), b"", raw), 400)
    assert "too many rows" in error(ask(echo(ROW, max_rows=1), ROWS.tobytes(), raw), 413)
    assert "NaN" in error(ask(echo(ROW), np.float32([np.nan, 0]).tobytes(), raw), 400)
    assert "one input" in error(ask(echo(ROW, Spec("y", "FP32", (-1,))), ROWS.tobytes(), raw), 400)
    assert "fixed" in error(ask(echo(Spec("x", "FP32", (-1, -1))), ROWS.tobytes(), raw), 400)
    text = ask(echo(Spec("x", "BYTES", (-1, 1))), b"hello", raw)
    assert b'"hello"' in text.body
    assert "one BYTES element" in error(ask(echo(Spec("x", "BYTES", (-1, 2))), b"hello", raw), 400)
    assert "UTF-8" in error(ask(echo(Spec("x", "BYTES", (-1,))), b"\xff", raw), 400)


def test_tritons_raw_request_is_answered_in_binary() -> None:
    answer = ask(echo(ROW), ROWS.tobytes(), {**V2, "content-type": OCTETS, LENGTH: "0"})
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.body[:length])["outputs"][0]["shape"] == [2, 2]
    assert answer.body[length:] == ROWS.tobytes()
    assert "is 0" in error(ask(echo(ROW), ROWS.tobytes(), {**V2, LENGTH: "0"}), 400)


@pytest.mark.parametrize("headers", [V1, PREDICTIONS], ids=["v1", "predictions"])
def test_raw_answers_are_for_one_output(headers: dict[str, str]) -> None:
    answer = ask(echo(ROW), {"instances": ROWS.tolist()}, {**headers, "accept": OCTETS})
    assert (answer.status, answer.content_type, answer.body) == (200, OCTETS, ROWS.tobytes())
    two = echo(ROW, Spec("y", "FP32", (-1,)))
    assert "one output" in error(ask(two, {"instances": [{"x": [1, 2], "y": 1}]}, {**headers, "accept": OCTETS}), 406)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("application/json", "application/json"),
        ("application/octet-stream", OCTETS),
        ("application/octet-stream;q=0.5, application/json", "application/json"),
        ("application/*;q=0.1, application/octet-stream", OCTETS),
        ("application/octet-stream, application/json;q=0.9", OCTETS),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", OCTETS),
        ("APPLICATION/OCTET-STREAM", OCTETS),
        ("text/html", None),
        ("application/json;q=0", None),
        ("application/json;q=x", None),
        (",;,q=", None),
    ],
)
def test_the_accept_header_chooses(accept: str, content_type: str | None) -> None:
    for headers in (V2, V1, PREDICTIONS):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}]} if headers is V2 else None
        answer = ask(echo(ROW), body or {"instances": ROWS.tolist()}, {**headers, "accept": accept})
        assert (answer.status, answer.content_type) == ((200, content_type) if content_type else (406, "application/json")), answer


@pytest.mark.parametrize("headers", [V2, V1, PREDICTIONS], ids=["v2", "v1", "predictions"])
def test_other_content_is_refused_and_json_is_taken_by_its_names(headers: dict[str, str]) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    body = {"inputs": [tensor]} if headers is V2 else {"instances": ROWS.tolist()}
    for good in ("application/json", "application/json; charset=utf-8", "Application/JSON", "", "application/x-www-form-urlencoded"):
        assert ask(echo(ROW), body, {**headers, "content-type": good}).status == 200, good
    for bad in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "image/png", "json"):
        assert "unsupported content-type" in error(ask(echo(ROW), body, {**headers, "content-type": bad}), 415)
    assert ask(echo(ROW), body, {**headers, "content-encoding": "identity"}).status == 200
    for encoding in ("gzip", "br", "gzip, identity"):
        assert "content-encoding" in error(ask(echo(ROW), body, {**headers, "content-encoding": encoding}), 415)


def test_a_declared_transform_makes_the_inputs() -> None:
    def lengths(model: ModelInfo, body: memoryview) -> tuple[Array, ...]:
        if not body:
            raise RequestError(400, "no text")
        return complete(model, {"x": np.float32([[len(body), body[0]]])})

    core = echo(ROW, transforms={"text/plain": lengths})
    for headers in (V2, V1, PREDICTIONS):
        answer = ask(core, b"abc", {**headers, "content-type": "text/plain; charset=utf-8"})
        assert b"97" in answer.body or np.float32([3, 97]).tobytes() in answer.body
        assert error(ask(core, b"", {**headers, "content-type": "text/plain"}), 400) == "no text"
        assert "text/plain" in error(ask(core, b"", {**headers, "content-type": "text/css"}), 415)


def test_the_signature_has_one_name_in_v1() -> None:
    core = echo(ROW)
    assert ask(core, {"signature_name": "serving_default", "instances": ROWS.tolist()}, V1).status == 200
    for other in ("predict", 3, None, [1] * 2000):
        assert "signature_name" in error(ask(core, {"signature_name": other, "instances": ROWS.tolist()}, V1), 400)


# --- names given twice


@pytest.mark.parametrize(
    ("body", "repeated"),
    [
        (b'{"instances":[[1,2]],"instances":[[3,4]]}', True),
        (b'{"instances":[{"x":[1,2],"x":[3,4]}]}', True),
        (b'{"instances":[[1,2]],"note":{"a":1,"\\u0061":2}}', True),
        (b'{"instances":[[1,2]],"note":"a:b"}', False),
        (b'{"instances":[[1,2]],"note":"a:b","note":1}', True),
        (b'{"instances":[[1,2]],"note":"\\"a\\":"}', False),
        (b'{"instances":[[1,2]],"note":[1,{"a":1}]}', False),
        (b'{"instances":[[1,2]],"note":[1,{"a":1,"a":2}]}', True),
        (b'{"instances":[{"x":[1,2]},{"x":[3,4]}]}', False),
        (b'{"instances":[' + b",".join([b'{"x":[1,2]}'] * 60) + b"]}", False),
        (b'{"instances":[' + b",".join([b'{"x":[1,2]}'] * 60 + [b'{"x":[1,2],"x":[1,2]}']) + b"]}", True),
    ],
)
def test_names_given_twice_are_refused(body: bytes, repeated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for min_bytes in (0, 1 << 30):  # with and without the accelerator
        monkeypatch.setattr(fast_json, "_MIN_BYTES", min_bytes)
        answer = ask(echo(ROW), body, V1)
        assert answer.status == (400 if repeated else 200), answer
        assert (b"same name twice" in answer.body) is repeated


def test_without_accelerators_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_json, "_simdjson", None)
    monkeypatch.setattr(jsons, "_orjson", None)
    for datatype, values in VALUES.items():
        (row,) = json.loads(ask(echo(Spec("x", datatype, (-1, 2))), [values], PREDICTIONS).body)
        np.testing.assert_array_equal(np.array(row, NUMPY_DTYPES[datatype]), np.array(values, NUMPY_DTYPES[datatype]))
    assert "not valid JSON" in error(ask(echo(ROW), b"[[NaN,1]]", PREDICTIONS), 400)
    assert ask(echo(ROW), b"[[1e999,1]]", PREDICTIONS).status == 400
    assert ask(echo(ROW), b"[" * 100_000, PREDICTIONS).status == 400
    assert "UTF-8" in error(ask(echo(Spec("x", "BYTES", (-1,))), b'["\\ud800"]', PREDICTIONS), 400)


# --- what the core checks once for a batch


def test_not_finite_bytes_are_refused_alone_and_the_others_run_together() -> None:
    core = echo(ROW)
    requests = []
    for index in range(5):
        row = np.float32([index, np.nan if index in (1, 3) else 0])
        requests.append(({**PREDICTIONS, "content-type": OCTETS}, row.tobytes()))
    answers = core.handle(requests)
    assert [answer.status for answer in answers] == [200, 400, 200, 400, 200]
    assert [json.loads(answers[i].body) for i in (0, 2, 4)] == [[[0, 0]], [[2, 0]], [[4, 0]]]
    assert "input x: contains NaN or infinity" in error(answers[1], 400)


def test_a_bad_output_has_an_error_id_that_the_log_has_too_and_no_payload(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
            if (inputs[0] == 12345).any():
                raise RuntimeError("12345 is what the request said")
            return {"y": np.where(inputs[0] == 54321, np.nan, inputs[0]).astype(np.float32)}

    core = Core(ModelInfo("m", "1", (ROW,), (Spec("y", "FP32", (-1, 2)),), 64), Broken())
    with caplog.at_level(logging.ERROR, logger="modelway"):
        bodies = [b"[[54321,1]]", b"[[12345,1]]", b"[[3,4]]"]
        answers = core.handle([({**PREDICTIONS, "x-request-id": f"id-{number}"}, body) for number, body in enumerate(bodies)])
    assert [answer.status for answer in answers] == [500, 500, 200]
    assert "model output is not finite (output y: 1 of 2 values are NaN or infinite); error id id-0" in error(answers[0], 500)
    assert "error id id-1" in error(answers[1], 500)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["error id-1", "error id-0"] or [
        record.getMessage().split(":")[0] for record in caplog.records
    ] == ["error id-0", "error id-1"]
    assert "12345" not in caplog.text
    assert "54321" not in caplog.text
    caplog.clear()
    forged = core.handle([({**PREDICTIONS, "x-request-id": "[METRICS]x\nforged"}, b"[[54321,1]]")])[0]
    assert "forged" not in error(forged, 500)
    assert "forged" not in caplog.text


def test_unaligned_bytes_are_aligned_for_the_engine() -> None:
    seen: list[bool] = []

    class Sees(Echo):
        def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
            seen.extend(array.flags.aligned for array in inputs)
            return super().run(inputs)

    core = Core(ModelInfo("m", "1", (ROW,), (Spec("y", "FP32", (-1, 2)),), 64), Sees("y"))
    for offset in range(4):
        body = memoryview(b"\0" * offset + ROWS.tobytes())[offset:]
        assert core.handle([({**PREDICTIONS, "content-type": OCTETS}, body)])[0].status == 200
    assert seen == [True] * 4


def test_to_bytes_is_row_major_whatever_the_array_is() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert to_bytes(Spec("y", "FP32", (-1, 2)), array) == np.ascontiguousarray(array).tobytes()
