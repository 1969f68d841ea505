"""Open Inference Protocol v2 over REST: JSON, the binary tensor extension, and Triton's raw requests.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md

Wider than Triton in two things: FP16 and BF16 may also be JSON numbers, rounded to the nearest value, ties to even; and
where the model declares a tokenizer, a BYTES tensor of texts may stand for what the tokenizer makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .errors import RequestError
from .jsons import dumps, parse
from .messages import (
    BINARY,
    JSON_LENGTH_HEADER,
    REQUEST_ID_HEADER,
    Answer,
    Decoded,
    Headers,
    ModelInfo,
    check_rows,
    complete,
    unknown,
)
from .negotiation import is_declared, transform_of, wants_binary
from .tensors import Array, Spec, check_shape, from_bytes, from_json, to_bytes, to_json

_MAX_ID_CHARS = 256
_MAX_REMEMBERED = 256
_MAX_REMEMBERED_BYTES = 2048
_NO_PARAMETERS: Mapping[str, Any] = {}
# Extensions that change what a request means; to ignore them would be to answer another question.
_UNSUPPORTED = ("shared_memory_region", "sequence_id")


class Wanted(NamedTuple):
    """An output to answer with.

    Attributes:
        binary: Whether it goes as binary data; None leaves it to the whole request.
        num_labels: It goes as that many texts `score:index:label` of each row; 0: as it is.
    """

    spec: Spec
    binary: bool | None = None
    num_labels: int = 0

    def with_default(self, default: bool) -> Wanted:
        """The same, with what the whole request says where this output says nothing."""
        return self if self.binary is not None else Wanted(self.spec, default, self.num_labels)

    def sent(self, model: ModelInfo, array: Array) -> tuple[Spec, Array]:
        """What goes out of the output's array: that, or its labels [rows, num_labels]."""
        if not self.num_labels:
            return self.spec, array
        labels = model.labels[self.spec.name].classification(array, self.num_labels)
        return Spec(self.spec.name, "BYTES", (-1, labels.shape[1])), labels


def decode_v2_ready(model: ModelInfo, headers: Headers, body: memoryview) -> Answer:
    """The readiness of a version: a worker that answers is ready."""
    return Answer(200, dumps({"name": model.name, "version": model.version, "ready": True}))


def decode_v2_infer(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    """An inference request. Raises RequestError 4xx."""
    request_id = headers.get(REQUEST_ID_HEADER, "")
    length = headers.get(JSON_LENGTH_HEADER.lower())
    transform = transform_of(model, headers, body)
    if transform is None and length == "0":
        raise RequestError(400, f"{JSON_LENGTH_HEADER} is 0, which needs the content-type {BINARY}")
    if transform is not None:
        labels = model.labels if is_declared(transform) else {}
        binary = wants_binary(headers, default=not is_declared(transform))
        every = [Wanted(spec, binary, labels[spec.name].top_k if spec.name in labels else 0) for spec in model.outputs]
        return Decoded(complete_inputs(model, transform(model, body)), lambda outputs: encode_v2(model, None, every, outputs), request_id)
    text, blobs = _split_binary(length, body)
    request = _parse_request(model, text, has_binary=length is not None)
    default = wants_binary(headers) if request.all_binary is None else request.all_binary
    wanted = [output.with_default(default) for output in request.outputs]
    inputs = _v2_inputs(model, request, blobs)
    return Decoded(inputs, lambda outputs: encode_v2(model, request.correlation, wanted, outputs), request_id)


class _Tensor(NamedTuple):
    """An input as the JSON part describes it: with its data, or with the size of it in the binary part."""

    spec: Spec
    shape: tuple[int, ...]
    size: int | None
    data: Any


class _Request(NamedTuple):
    """The JSON part of a request, valid but for the data. `None` for `all_binary` means what the accept header says."""

    correlation: str | None
    all_binary: bool | None
    outputs: Sequence[Wanted]
    tensors: Sequence[_Tensor]
    literals: bool


def _parse_request(model: ModelInfo, text: memoryview, *, has_binary: bool) -> _Request:
    """The JSON part. A client that sends binary data sends the same JSON again and again, so that is kept."""
    if not has_binary or len(text) > _MAX_REMEMBERED_BYTES:
        return _parse_anew(model, text)
    key = bytes(text)
    known: _Request | None = model.memory.get(key)
    if known is None:
        known = _parse_anew(model, text)
        if all(tensor.size is not None for tensor in known.tensors):
            if len(model.memory) >= _MAX_REMEMBERED:
                model.memory.clear()
            model.memory[key] = known
    return known


def _parse_anew(model: ModelInfo, text: memoryview) -> _Request:
    document = parse(text, floats=model.takes_floats)
    request = document.value
    if type(request) is not dict:
        raise RequestError(400, "expected a JSON object")
    correlation = request.get("id")
    check_id(correlation)
    tensors = []
    for name, entry in _by_name("inputs", request.get("inputs")).items():
        claimed = entry.get("shape")
        spec = model.accepted_as(name, len(claimed) if type(claimed) is list else 1)
        shape = check_v2_tensor(model, spec, entry.get("datatype"), claimed)
        size = _binary_size(entry, name)
        if size is not None and "data" in entry:
            raise RequestError(400, f"input {name}: has both data and binary_data_size")
        tensors.append(_Tensor(spec, tuple(shape), size, entry.get("data")))
    all_binary = flag_of(parameters_of(request, "request"), "binary_data_output")
    outputs = v2_wanted(model, request.get("outputs"))
    return _Request(correlation, all_binary, outputs, tensors, document.literals)


def check_id(correlation: Any) -> None:
    """Raise RequestError 400 for an id that is no string, or too long to be sent back."""
    if correlation is not None and not (type(correlation) is str and len(correlation) <= _MAX_ID_CHARS):
        raise RequestError(400, f"id must be a string of at most {_MAX_ID_CHARS} characters")


def complete_inputs(model: ModelInfo, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """A transform's arrays, held against the number of rows that a request may have."""
    return complete(model, {spec.name: array for spec, array in zip(model.inputs, inputs, strict=True)})


def _v2_inputs(model: ModelInfo, request: _Request, binary: memoryview) -> tuple[Array, ...]:
    """The tensors of the request, each of its JSON data or of the next bytes of the binary part."""
    arrays: dict[str, Array] = {}
    offset = 0
    for spec, shape, size, data in request.tensors:
        if size is None:
            arrays[spec.name] = from_json(spec, data, shape=shape, literals=request.literals)
            continue
        if offset + size > len(binary):
            raise RequestError(
                400, f"input {spec.name}: binary_data_size {_short(size)} is more than the {len(binary) - offset} bytes that are left"
            )
        arrays[spec.name] = from_bytes(spec, binary[offset : offset + size], shape=shape)
        offset += size
    if offset != len(binary):
        raise RequestError(400, f"{len(binary) - offset} bytes of binary data belong to no input")
    return complete(model, arrays)


def check_v2_tensor(model: ModelInfo, spec: Spec, datatype: Any, shape: Any) -> list[int]:
    """What a request says of an input, checked against the signature; returns the shape. Raises RequestError 4xx."""
    if type(datatype) is not str or datatype != spec.datatype:
        got = datatype if isinstance(datatype, str) and len(datatype) <= 10 else "something else"
        raise RequestError(400, f"input {spec.name}: expected datatype {spec.datatype}, got {got}")
    if type(shape) is not list:
        raise RequestError(400, f"input {spec.name}: expected a shape like {list(spec.shape)}, got none")
    check_shape(spec, shape)
    check_rows(model, shape[0])
    return shape


def v2_wanted(model: ModelInfo, entries: Any) -> Sequence[Wanted]:
    """The outputs that the request asks for, in its order; all of them if it asks for none. Raises RequestError 400."""
    if entries is None or (type(entries) is list and not entries):
        return [Wanted(spec) for spec in model.outputs]
    wanted = []
    for name, entry in _by_name("outputs", entries).items():
        spec = model.outputs_by_name.get(name)
        if spec is None:
            raise RequestError(400, unknown("output", model.outputs))
        parameters = parameters_of(entry, f"output {name}", labels=True)
        wanted.append(Wanted(spec, flag_of(parameters, "binary_data"), _num_labels(model, spec, parameters.get("classification"))))
    return wanted


def _num_labels(model: ModelInfo, spec: Spec, classification: Any) -> int:
    if classification is None:
        return 0
    if spec.name not in model.labels:
        raise RequestError(400, f"output {spec.name}: classification is for outputs with labels; the model declares none for this one")
    if type(classification) is not int or classification < 1:
        raise RequestError(400, f"output {spec.name}: classification must be a number of labels, 1 or more")
    return classification


def encode_v2(model: ModelInfo, correlation: str | None, wanted: Sequence[Wanted], outputs: Mapping[str, Array]) -> Answer:
    """The answer; written piece by piece, because most of it is the same each time. Binary data follows in the order of the entries."""
    parts = [model.v2_head]
    blobs: list[bytes] = []
    if correlation is not None:
        parts.append(b',"id":' + dumps(correlation))
    separator = b',"outputs":['
    for output in wanted:
        spec, array = output.sent(model, outputs[output.spec.name])
        shape = ",".join(map(str, array.shape))
        if output.binary:
            blob = to_bytes(spec, array)
            parts.append(b'%b%b[%b],"parameters":{"binary_data_size":%d}}' % (separator, spec.v2_head, shape.encode(), len(blob)))
            blobs.append(blob)
        else:
            data = dumps(to_json(spec, array.reshape(-1)))
            parts.append(b'%b%b[%b],"data":%b}' % (separator, spec.v2_head, shape.encode(), data))
        separator = b","
    parts.append(b"]}")
    if not blobs:
        return Answer(200, b"".join(parts))
    text_length = sum(map(len, parts))
    return Answer(200, b"".join(parts + blobs), BINARY, {JSON_LENGTH_HEADER: str(text_length)})


def _split_binary(length: str | None, body: memoryview) -> tuple[memoryview, memoryview]:
    if length is None:
        return body, body[len(body) :]
    if not (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= len(body)):
        raise RequestError(400, f"{JSON_LENGTH_HEADER} must be at most the body's {len(body)} bytes")
    return body[: int(length)], body[int(length) :]


def _binary_size(entry: Mapping[str, Any], name: str) -> int | None:
    size = parameters_of(entry, f"input {name}").get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(400, f"input {name}: binary_data_size must be a non-negative integer")
    return size


def parameters_of(owner: Mapping[str, Any], where: str, *, labels: bool = False) -> Mapping[str, Any]:
    """Parameters of a request or a tensor; unknown ones are let pass. Raises RequestError 400 for those that we must not ignore.

    Args:
        labels: Labels may be asked for here: of an output, of nothing else.
    """
    parameters = owner.get("parameters")
    if parameters is None:
        return _NO_PARAMETERS
    if type(parameters) is not dict:
        raise RequestError(400, f"{where}: parameters must be an object")
    for name in _UNSUPPORTED if labels else (*_UNSUPPORTED, "classification"):
        if parameters.get(name) is not None:
            raise RequestError(400, f"{where}: the parameter {name} is not supported")
    return parameters


def flag_of(parameters: Mapping[str, Any], name: str) -> bool | None:
    """A parameter that is true or false; None if it is not there. Raises RequestError 400."""
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise RequestError(400, f"{name} must be true or false")
    return value


def _by_name(key: str, entries: Any) -> Mapping[str, dict[str, Any]]:
    if type(entries) is not list or not entries:
        raise RequestError(400, f'"{key}" must be an array of objects with a "name"')
    by_name: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry.get("name") if type(entry) is dict else None
        if type(name) is not str:
            raise RequestError(400, f'"{key}" must be an array of objects with a "name"')
        if name in by_name:
            raise RequestError(400, f'"{key}" names a tensor twice')
        by_name[name] = entry
    return by_name


def _short(size: int) -> str:
    return str(size) if size < 1 << 63 else "beyond 64 bits"
