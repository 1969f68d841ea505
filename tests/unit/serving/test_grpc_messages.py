"""gRPC's inference messages in the runtime, held against protobuf's own reading and writing of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from serving.runtime.modelway_runtime import wire
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import RequestError
from serving.runtime.modelway_runtime.grpc_contents import CONTENTS
from serving.runtime.modelway_runtime.grpc_messages import decode_grpc_infer
from serving.runtime.modelway_runtime.messages import Decoded, ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec

HEADERS = {"x-modelway-protocol": "v2-grpc", "x-request-id": "r-1"}
DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES")
FIELDS = {
    **{"BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64"},
    **{"UINT8": "uint", "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"},
}


class Echo:
    """Answers with its inputs."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip(self._names, inputs, strict=True))


def model(*datatypes: str, width: int = 4) -> ModelInfo:
    specs = tuple(Spec(f"t{index}", datatype, (-1, width)) for index, datatype in enumerate(datatypes))
    return ModelInfo(name="digits", version="3", inputs=specs, outputs=specs, max_rows=64)


def core(*datatypes: str, width: int = 4) -> Core:
    info = model(*datatypes, width=width)
    return Core(info, Echo([spec.name for spec in info.outputs]))


def values_of(datatype: str) -> list[Any]:
    """Four values, the extremes of the datatype among them."""
    if datatype == "BOOL":
        return [True, False, False, True]
    if datatype == "BYTES":
        return ["", "a", "ü€", "x" * 200]
    if datatype.startswith(("INT", "UINT")):
        limits = np.iinfo(datatype.lower())
        return [int(limits.min), int(limits.max), 0, 1]
    return [0.0, -1.5, 0.25, 3.0]


def raw_of(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)
    if datatype == "BF16":
        return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    dtypes = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
    return np.array(values, dtypes.get(datatype, datatype.lower())).tobytes()


def request(datatype: str, values: list[Any], *, raw: bool, **fields: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(**{"model_name": "digits", **fields})
    tensor = made.inputs.add(name="t0", datatype=datatype, shape=[len(values) // 4, 4])
    if raw:
        made.raw_input_contents.append(raw_of(datatype, values))
    else:
        encoded = [value.encode() for value in values] if datatype == "BYTES" else values
        getattr(tensor.contents, f"{FIELDS[datatype]}_contents").extend(encoded)
    return made


def ask(of: Core, made: pb.ModelInferRequest | bytes) -> pb.ModelInferResponse:
    answer = of.handle([(HEADERS, made if isinstance(made, bytes) else made.SerializeToString())])[0]
    assert answer.status == 200, answer.body
    assert answer.content_type == "application/x-protobuf"
    return pb.ModelInferResponse.FromString(answer.body)


def refused(of: Core, made: pb.ModelInferRequest | bytes) -> tuple[int, str]:
    answer = of.handle([(HEADERS, made if isinstance(made, bytes) else made.SerializeToString())])[0]
    assert answer.content_type == "application/json"
    return answer.status, answer.body.decode()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_bytes_come_back_as_raw_bytes(datatype: str) -> None:
    values = values_of(datatype)
    response = ask(core(datatype), request(datatype, values, raw=True, id="seven"))
    assert (response.model_name, response.model_version, response.id) == ("digits", "3", "seven")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("t0", datatype, [1, 4])
    assert not output.HasField("contents")
    assert list(response.raw_output_contents) == [raw_of(datatype, values)]


@pytest.mark.parametrize("datatype", sorted(FIELDS))
def test_contents_come_back_as_contents(datatype: str) -> None:
    values = values_of(datatype)
    response = ask(core(datatype), request(datatype, values, raw=False))
    (output,) = response.outputs
    got = list(getattr(output.contents, f"{FIELDS[datatype]}_contents"))
    assert got == ([value.encode() for value in values] if datatype == "BYTES" else values)
    assert not response.raw_output_contents


def test_every_datatype_with_contents_is_in_the_table() -> None:
    numbers = {f"{FIELDS[name]}_contents": field.number for name, field in CONTENTS.items()}
    assert numbers == {field.name: field.number for field in pb.InferTensorContents.DESCRIPTOR.fields}
    assert set(CONTENTS) == set(FIELDS)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_what_has_no_contents_must_be_raw(datatype: str) -> None:
    made = request(datatype, values_of(datatype), raw=True)
    del made.raw_input_contents[:]
    made.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    status, text = refused(core(datatype), made)
    assert status == 400
    assert f"{datatype} must be sent in raw_input_contents" in text


def test_a_client_can_ask_for_raw_answers_to_contents_and_the_other_way_round() -> None:
    made = request("FP32", values_of("FP32"), raw=False)
    made.parameters["binary_data_output"].bool_param = True
    assert ask(core("FP32"), made).raw_output_contents
    made = request("FP32", values_of("FP32"), raw=True)
    made.parameters["binary_data_output"].bool_param = False
    assert list(ask(core("FP32"), made).outputs[0].contents.fp32_contents) == values_of("FP32")


def test_outputs_come_in_the_order_that_was_asked_for() -> None:
    made = request("FP32", values_of("FP32"), raw=True)
    made.inputs.add(name="t1", datatype="INT64", shape=[1, 4])
    made.raw_input_contents.append(raw_of("INT64", values_of("INT64")))
    made.outputs.add(name="t1")
    made.outputs.add(name="t0")
    response = ask(core("FP32", "INT64"), made)
    assert [output.name for output in response.outputs] == ["t1", "t0"]
    assert list(response.raw_output_contents) == [raw_of("INT64", values_of("INT64")), raw_of("FP32", values_of("FP32"))]
    del made.outputs[0]
    assert [output.name for output in ask(core("FP32", "INT64"), made).outputs] == ["t0"]


def test_raw_tensors_are_not_copied() -> None:
    body = memoryview(request("FP32", values_of("FP32"), raw=True).SerializeToString())
    decoded = decode_grpc_infer(model("FP32"), HEADERS, body)
    assert np.shares_memory(decoded.inputs[0], np.frombuffer(body, np.uint8))
    assert decoded.request_id == "r-1"


def edited(**changes: Any) -> pb.ModelInferRequest:
    """A good request with its one tensor changed."""
    made = request("FP32", values_of("FP32"), raw=changes.pop("raw", True))
    for name, value in changes.items():
        if name == "shape":
            made.inputs[0].ClearField("shape")
            made.inputs[0].shape.extend(value)
        elif name in ("model_name", "model_version", "id"):
            setattr(made, name, value)
        else:
            setattr(made.inputs[0], name, value)
    return made


def with_parameter(name: str, *, of_tensor: bool = False) -> pb.ModelInferRequest:
    made = request("FP32", values_of("FP32"), raw=True)
    (made.inputs[0] if of_tensor else made).parameters[name].int64_param = 7
    return made


def with_more(**fields: Any) -> pb.ModelInferRequest:
    made = request("FP32", values_of("FP32"), raw=True)
    made.MergeFrom(pb.ModelInferRequest(**fields))
    return made


def unpacked(*lists: bytes) -> bytes:
    """A request whose contents come in several pieces, and some of them in several fields."""
    tensor = wire.field(1, "t0") + wire.field(2, "FP32") + b"\x18\x01" + wire.integers(3, [4]) + b"".join(wire.field(5, c) for c in lists)
    return wire.field(1, "digits") + wire.field(5, tensor)


@pytest.mark.parametrize(
    ("made", "status", "words"),
    [
        (edited(name="other"), 400, "unknown input name; expected t0"),
        (edited(datatype="INT64"), 400, "expected datatype FP32, got INT64"),
        (edited(datatype=""), 400, "expected datatype FP32"),
        (edited(shape=[1, 5]), 400, "expected shape [-1, 4], got [1, 5]"),
        (edited(shape=[2, 4]), 400, "expected 32 bytes"),
        (edited(shape=[0, 4]), 400, "is empty"),
        (edited(shape=[-1, 4]), 400, "non-negative"),
        (edited(shape=[1] * 100), 400, "more than 64"),
        (edited(shape=[65, 4]), 413, "at most 64"),
        (edited(shape=[2**62, 4]), 413, "too many rows"),
        (edited(shape=[]), 400, "expected shape"),
        (edited(raw=False, shape=[2, 4]), 400, "shape [2, 4] needs 8 values, got 4"),
        (edited(model_name="other"), 400, "not for digits version 3"),
        (edited(model_version="4"), 400, "not for digits version 3"),
        (edited(id="x" * 300), 400, "at most 256"),
        (with_parameter("sequence_id"), 400, "sequence_id is not supported"),
        (with_parameter("shared_memory_region", of_tensor=True), 400, "shared_memory_region is not supported"),
        (with_parameter("binary_data_output"), 400, "true or false"),
        (with_more(raw_input_contents=[b"x"]), 400, "expected 1, got 2"),
        (with_more(outputs=[{"name": "nothing"}]), 400, "unknown output name; expected t0"),
        (with_more(outputs=[{"name": "t0"}, {"name": "t0"}]), 400, "twice"),
        (with_more(inputs=[{"name": "t0", "datatype": "FP32", "shape": [1, 4]}], raw_input_contents=[bytes(16)]), 400, "twice"),
        (pb.ModelInferRequest(model_name="digits"), 400, "missing input t0"),
        (b"\x0a\xff", 400, "ends behind its message"),
        (edited().SerializeToString()[:-1], 400, "ends behind its message"),
        (b"\x07", 400, "no such field number"),
        (b"\x0b", 400, "no such wire type"),
        (b"\x08" + b"\xff" * 12, 400, "more than 10 bytes"),
        (b"\x0a\x01\xff", 400, "not UTF-8"),
        (b"\x08\x01", 400, "wrong wire type"),
        (b"\x40\x00" * 5000, 400, "more than 4096 fields"),
        (unpacked(b"\x10\x01"), 400, "must be in the field 6"),
        (unpacked(wire.field(6, bytes(7))), 400, "ends within one"),
        (unpacked(b"\x35" + bytes(4)), 400, "needs 4 values, got 1"),
        (unpacked((b"\x35" + bytes(4)) * 1000), 400, "more than 5 fields"),
    ],
)
def test_a_bad_message_is_refused_in_one_line(made: pb.ModelInferRequest | bytes, status: int, words: str) -> None:
    got, text = refused(core("FP32"), made)
    assert got == status, text
    assert words in text


def test_contents_may_come_in_pieces() -> None:
    four = np.array([1, 2, 3, 4], "<f4")
    one_by_one = b"".join(b"\x35" + value.tobytes() for value in four)
    for made in (
        unpacked(wire.field(6, four.tobytes())),
        unpacked(one_by_one),
        unpacked(wire.field(6, four[:3].tobytes()), one_by_one[-5:]),
    ):
        assert pb.ModelInferRequest.FromString(made).inputs[0].contents.fp32_contents == [1, 2, 3, 4]
        assert list(ask(core("FP32"), made).outputs[0].contents.fp32_contents) == [1, 2, 3, 4]


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT8", -129), ("INT16", 1 << 15), ("UINT8", 256), ("UINT16", 1 << 16)])
def test_a_number_beyond_its_datatype_is_refused(datatype: str, value: int) -> None:
    status, text = refused(core(datatype), request(datatype, [0, 1, value, 0], raw=False))
    assert status == 400
    assert f"outside the range of {datatype}" in text


def test_a_number_that_is_not_finite_is_refused() -> None:
    for raw in (True, False):
        status, text = refused(core("FP32"), request("FP32", [1.0, float("nan"), 1.0, float("inf")], raw=raw))
        assert status == 400
        assert "NaN or infin" in text


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=50))
def test_numbers_are_written_and_read_as_protobuf_does(numbers: list[int]) -> None:
    packed = b"".join(map(wire.varint, numbers))
    assert wire.varints(np.array(numbers, np.uint64)) == packed
    assert wire.read_varints(memoryview(packed)).tolist() == numbers
    contents = pb.InferTensorContents(uint64_contents=numbers)
    assert contents.SerializeToString() == (wire.field(5, packed) if numbers else b"")
    signed = [wire.signed(number) for number in numbers]
    assert wire.read_integers(memoryview(packed), limit=50) == signed
    assert pb.InferTensorContents(int64_contents=signed).SerializeToString() == (wire.integers(3, signed) if numbers else b"")


@settings(max_examples=400)
@given(data=st.data(), raw=st.booleans())
def test_spoilt_messages_raise_nothing_but_request_errors(data: st.DataObject, raw: bool) -> None:
    good = bytearray(request("FP32", values_of("FP32"), raw=raw, id="x").SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(good)))
        good[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    _decode_or_refuse(bytes(good))


@settings(max_examples=400)
@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_request_errors(body: bytes) -> None:
    _decode_or_refuse(body)


def _decode_or_refuse(body: bytes) -> None:
    try:
        decoded: Decoded | RequestError = decode_grpc_infer(model("FP32"), HEADERS, memoryview(body))
    except RequestError as error:
        decoded = error
    if isinstance(decoded, RequestError):
        assert 400 <= decoded.status < 500
        return
    # What we take for a message is one for protobuf too, and says the same.
    parsed = pb.ModelInferRequest.FromString(body)
    assert [tensor.name for tensor in parsed.inputs] == ["t0"]
    raw = bool(parsed.raw_input_contents)
    sent = parsed.raw_input_contents[0] if raw else np.array(parsed.inputs[0].contents.fp32_contents, "<f4").tobytes()
    assert decoded.inputs[0].tobytes() == sent
