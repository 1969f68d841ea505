"""The protocols that a worker speaks: bytes of a request -> named arrays, and named arrays -> bytes of an answer.

    v2-infer     Open Inference Protocol v2, JSON and the binary tensor extension
                 https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
                 https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    v2-ready     that protocol's version readiness
    v1-predict   TensorFlow Serving's REST API, `instances` (rows) and `inputs` (columns)
                 https://www.tensorflow.org/tfx/serving/api_rest
    predictions  TorchServe's: a bare JSON array of rows, or {"instances": rows}

A protocol is one function in `DECODERS`; it returns the arrays and a function that encodes the answer. What is
decoded is complete and valid: every input of the signature, of its dtype, of a shape that fits, with as many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import RequestError
from .jsons import dumps, loads
from .tensors import Array, Spec, check_shape, from_bytes, from_json

JSON = "application/json"
BINARY = "application/octet-stream"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
PROTOCOL_HEADER = "x-modelway-protocol"
DEFAULT_PROTOCOL = "predictions"
_MAX_ID_CHARS = 256


@dataclass(frozen=True)
class ModelInfo:
    """What a protocol needs to know of the model."""

    name: str
    version: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    max_rows: int


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """A valid request.

    Attributes:
        inputs: Arrays in the order of the signature, all with the same number of rows.
        encode: Output name -> array, in the order of the signature, to the answer.
    """

    inputs: tuple[Array, ...]
    encode: Callable[[Mapping[str, Array]], Answer]

    @property
    def num_rows(self) -> int:
        """Rows of the batch that this request brings."""
        return int(self.inputs[0].shape[0])


Headers = Mapping[str, str]  # names in lower case
Decoder = Callable[[ModelInfo, Headers, memoryview], "Decoded | Answer"]


def decode(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded | Answer:
    """Decode one request by the protocol that its header names. Raises RequestError 4xx."""
    protocol = headers.get(PROTOCOL_HEADER, DEFAULT_PROTOCOL)
    decoder = DECODERS.get(protocol)
    if decoder is None:
        raise RequestError(400, f"unknown protocol; {PROTOCOL_HEADER} must be one of {', '.join(DECODERS)}")
    return decoder(model, headers, body)


def error_answer(error: RequestError) -> Answer:
    """The answer to a request that cannot be answered otherwise."""
    return Answer(error.status, dumps({"error": error.message}))


def _decode_v2_ready(model: ModelInfo, headers: Headers, body: memoryview) -> Answer:
    return Answer(200, dumps({"name": model.name, "version": model.version, "ready": True}))


def _decode_v2_infer(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    text, binary = _split_binary(headers, body)
    request = _object(loads(text))
    request_id = request.get("id")
    if request_id is not None and not (isinstance(request_id, str) and len(request_id) <= _MAX_ID_CHARS):
        raise RequestError(400, f"id must be a string of at most {_MAX_ID_CHARS} characters")
    entries = _by_name("inputs", request.get("inputs"))
    arrays: dict[str, Array] = {}
    offset = 0
    specs = {spec.name: spec for spec in model.inputs}
    for name, entry in entries.items():
        if name not in specs:
            raise RequestError(400, _unknown("input", model.inputs))
        size = _binary_size(entry, name)
        if size is not None and offset + size > len(binary):
            raise RequestError(400, f"input {name}: binary_data_size {size} is more than the {len(binary) - offset} bytes that are left")
        arrays[name] = _v2_tensor(specs[name], entry, None if size is None else binary[offset : offset + size])
        offset += size or 0
    if offset != len(binary):
        raise RequestError(400, f"{len(binary) - offset} bytes of binary data belong to no input")
    wanted = _v2_wanted(model, request)
    return Decoded(_complete(model, arrays), lambda outputs: _encode_v2(model, request_id, wanted, outputs))


def _v2_tensor(spec: Spec, entry: Mapping[str, Any], binary: memoryview | None) -> Array:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype != spec.datatype:
        got = datatype if isinstance(datatype, str) and len(datatype) <= 10 else "something else"
        raise RequestError(400, f"input {spec.name}: expected datatype {spec.datatype}, got {got}")
    if not isinstance(shape, list):
        raise RequestError(400, f"input {spec.name}: expected a shape like {list(spec.shape)}, got none")
    check_shape(spec, shape)
    if binary is not None:
        if "data" in entry:
            raise RequestError(400, f"input {spec.name}: has both data and binary_data_size")
        return from_bytes(spec, binary, shape=shape)
    return from_json(spec, entry.get("data"), shape=shape)


def _v2_wanted(model: ModelInfo, request: Mapping[str, Any]) -> list[tuple[Spec, bool]]:
    """The outputs to answer with, and whether each goes as binary data."""
    parameters = request.get("parameters")
    all_binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    if not request.get("outputs"):
        return [(spec, all_binary) for spec in model.outputs]
    specs = {spec.name: spec for spec in model.outputs}
    wanted = []
    for name, entry in _by_name("outputs", request["outputs"]).items():
        if name not in specs:
            raise RequestError(400, _unknown("output", model.outputs))
        parameters = entry.get("parameters")
        binary = parameters.get("binary_data", all_binary) if isinstance(parameters, dict) else all_binary
        wanted.append((specs[name], binary is True))
    return wanted


def _encode_v2(model: ModelInfo, request_id: str | None, wanted: Sequence[tuple[Spec, bool]], outputs: Mapping[str, Array]) -> Answer:
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for spec, binary in wanted:
        array = outputs[spec.name]
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
        if binary:
            blob = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = np.ascontiguousarray(array).reshape(-1)
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": entries}
    if request_id is not None:
        answer["id"] = request_id
    text = dumps(answer)
    if not blobs:
        return Answer(200, text)
    return Answer(200, b"".join([text, *blobs]), BINARY, {JSON_LENGTH_HEADER: str(len(text))})


def _split_binary(headers: Headers, body: memoryview) -> tuple[memoryview, memoryview]:
    length = headers.get(JSON_LENGTH_HEADER.lower())
    if length is None:
        return body, body[len(body) :]
    if not (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= len(body)):
        raise RequestError(400, f"{JSON_LENGTH_HEADER} must be at most the body's {len(body)} bytes")
    return body[: int(length)], body[int(length) :]


def _binary_size(entry: Mapping[str, Any], name: str) -> int | None:
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(400, f"input {name}: binary_data_size must be a non-negative integer")
    return size


def _decode_v1(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    request = _object(loads(body))
    if ("instances" in request) == ("inputs" in request):
        raise RequestError(400, 'expected either "instances" (rows) or "inputs" (columns)')
    if "instances" in request:
        return Decoded(_from_rows(model, request["instances"]), lambda outputs: Answer(200, dumps({"predictions": _rows(outputs)})))
    return Decoded(_from_columns(model, request["inputs"]), lambda outputs: Answer(200, dumps({"outputs": _columns(outputs)})))


def _decode_predictions(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    request = loads(body)
    if isinstance(request, dict):
        if "instances" not in request:
            raise RequestError(400, 'expected an array of rows, or {"instances": rows}')
        request = request["instances"]
    return Decoded(_from_rows(model, request), lambda outputs: Answer(200, dumps(_rows(outputs))))


def _from_rows(model: ModelInfo, rows: Any) -> tuple[Array, ...]:
    if type(rows) is not list or not rows:
        raise RequestError(400, "expected an array with at least one row")
    if type(rows[0]) is not dict:
        if len(model.inputs) > 1:
            raise RequestError(400, f"each row must be an object with the inputs {_names(model.inputs)}")
        return _complete(model, {model.inputs[0].name: from_json(model.inputs[0], rows)})
    names = {spec.name for spec in model.inputs}
    if any(type(row) is not dict or row.keys() != names for row in rows):
        raise RequestError(400, f"each row must be an object with exactly the inputs {_names(model.inputs)}")
    return _complete(model, {spec.name: from_json(spec, [row[spec.name] for row in rows]) for spec in model.inputs})


def _from_columns(model: ModelInfo, columns: Any) -> tuple[Array, ...]:
    if type(columns) is not dict:
        if len(model.inputs) > 1:
            raise RequestError(400, f'"inputs" must be an object with the inputs {_names(model.inputs)}')
        columns = {model.inputs[0].name: columns}
    specs = {spec.name: spec for spec in model.inputs}
    if not columns.keys() <= specs.keys():
        raise RequestError(400, _unknown("input", model.inputs))
    return _complete(model, {name: from_json(specs[name], data) for name, data in columns.items()})


def _rows(outputs: Mapping[str, Array]) -> Any:
    if len(outputs) == 1:
        return np.ascontiguousarray(next(iter(outputs.values())))
    return [dict(zip(outputs, values, strict=True)) for values in zip(*(array.tolist() for array in outputs.values()), strict=True)]


def _columns(outputs: Mapping[str, Array]) -> Any:
    arrays = {name: np.ascontiguousarray(array) for name, array in outputs.items()}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _complete(model: ModelInfo, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
    """The arrays in the signature's order, checked to be all of them and to have the same, acceptable number of rows."""
    missing = [spec.name for spec in model.inputs if spec.name not in arrays]
    if missing:
        raise RequestError(400, f"missing input {', '.join(missing)}; expected {_names(model.inputs)}")
    ordered = tuple(arrays[spec.name] for spec in model.inputs)
    num_rows = {array.shape[0] for array in ordered}
    if len(num_rows) > 1:
        raise RequestError(400, f"inputs differ in their number of rows ({', '.join(map(str, sorted(num_rows)))})")
    if max(num_rows) > model.max_rows:
        raise RequestError(413, f"too many rows: at most {model.max_rows} a request, got {max(num_rows)}")
    return ordered


def _object(request: Any) -> dict[str, Any]:
    if not isinstance(request, dict):
        raise RequestError(400, "expected a JSON object")
    return request


def _by_name(key: str, entries: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries):
        raise RequestError(400, f'"{key}" must be an array of objects with a "name"')
    by_name = {entry["name"]: entry for entry in entries}
    if len(by_name) != len(entries):
        raise RequestError(400, f'"{key}" names a tensor twice')
    return by_name


def _unknown(side: str, specs: Sequence[Spec]) -> str:
    return f"unknown {side} name; expected {_names(specs)}"


def _names(specs: Sequence[Spec]) -> str:
    return ", ".join(spec.name for spec in specs)


DECODERS: Mapping[str, Decoder] = {
    "v2-infer": _decode_v2_infer,
    "v2-ready": _decode_v2_ready,
    "v1-predict": _decode_v1,
    "predictions": _decode_predictions,
}
