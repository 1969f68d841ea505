"""Open Inference Protocol v2 over gRPC: the messages ModelInferRequest and ModelInferResponse, without their gRPC frames.

The gateway takes the frames off and puts them on, so a message arrives as the body of a POST (docs/adr/0005-grpc-by-reverse-bridge.md).
The checks are those of v2 over REST. An answer is raw if the request was, or asked for it, or has datatypes that have no
other form; otherwise its numbers are in `contents`.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from . import wire
from .errors import RequestError
from .grpc_contents import CONTENTS, Contents, from_contents, to_contents
from .messages import REQUEST_ID_HEADER, Answer, Decoded, Headers, ModelInfo, complete
from .tensors import Array, from_bytes, to_bytes
from .v2 import Wanted, check_id, check_v2_tensor, flag_of, parameters_of, v2_wanted

MESSAGE = "application/x-protobuf"
_READY = Answer(200, wire.flag(1, True), MESSAGE)

# A message may come in more pieces than anybody sends; grpc_request.lua has the same limit for the outer one.
_MAX_FIELDS = 4096
_MAX_DIMENSIONS = 64
_CACHED_BYTES = 512  # what is longer is read anew each time


class _Tensor(NamedTuple):
    """An InferInputTensor without its contents."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def decode_grpc_ready(model: ModelInfo, headers: Headers, body: memoryview) -> Answer:
    """ModelReady: a worker that answers is ready."""
    return _READY


def decode_grpc_infer(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    """ModelInfer. Raises RequestError 4xx."""
    try:
        return _decode(model, headers, body)
    except wire.WireError as error:
        raise RequestError(400, f"the message is not valid protobuf: {error}") from None
    except UnicodeDecodeError:
        raise RequestError(400, "the message is not valid protobuf: a string is not UTF-8") from None


def _decode(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    name = version = correlation = ""
    tensors: list[memoryview] = []
    outputs: list[dict[str, Any]] = []
    raw: list[memoryview] = []
    parameters: list[memoryview] = []
    for number, _, content in wire.fields(body, limit=_MAX_FIELDS):
        if number > 7:
            continue
        value = wire.as_bytes(content)
        if number == 7:
            raw.append(value)
        elif number == 5:
            tensors.append(value)
        elif number == 6:
            outputs.append(_cached_output(bytes(value)) if len(value) <= _CACHED_BYTES else _output(value))
        elif number == 1:
            name = str(value, "utf-8")
        elif number == 2:
            version = str(value, "utf-8")
        elif number == 3:
            correlation = str(value, "utf-8")
        else:
            parameters.append(value)
    # The gateway chose this worker by the name that it read itself; what is not for this model went another way.
    if name not in ("", model.name) or version not in ("", model.version):
        raise RequestError(400, f"the message is not for {model.name} version {model.version}")
    check_id(correlation)
    asked_raw = flag_of(parameters_of({"parameters": _parameters(parameters)}, "request"), "binary_data_output") if parameters else None
    all_raw = bool(raw) if asked_raw is None else asked_raw
    wanted = [output.with_default(all_raw) for output in v2_wanted(model, outputs)]
    inputs = _inputs(model, tensors, raw)
    return Decoded(inputs, lambda arrays: _encode(model, correlation, wanted, arrays), headers.get(REQUEST_ID_HEADER, ""))


def _inputs(model: ModelInfo, messages: Sequence[memoryview], raw: Sequence[memoryview]) -> tuple[Array, ...]:
    if raw and len(raw) != len(messages):
        raise RequestError(400, f"raw_input_contents must have one entry for each input: expected {len(messages)}, got {len(raw)}")
    arrays: dict[str, Array] = {}
    for index, message in enumerate(messages):
        # What a client says of its inputs is the same in each of its requests, but for the contents.
        tensor, contents = (_cached_tensor(bytes(message)), ()) if raw and len(message) <= _CACHED_BYTES else _tensor(message)
        spec = model.accepted_as(tensor.name, len(tensor.shape))
        if tensor.name in arrays:
            raise RequestError(400, '"inputs" names a tensor twice')
        shape = check_v2_tensor(model, spec, tensor.datatype, list(tensor.shape))
        if raw and contents:
            raise RequestError(400, f"input {spec.name}: has contents beside raw_input_contents")
        arrays[spec.name] = from_bytes(spec, raw[index], shape=shape) if raw else from_contents(spec, contents, shape)
    return complete(model, arrays)


def _tensor(message: memoryview) -> tuple[_Tensor, Contents]:
    """An InferInputTensor and its contents, which come in pieces: of several fields a parser sees all as one."""
    name = datatype = ""
    shape: list[int] = []
    contents: list[memoryview] = []
    for number, _, value in wire.fields(message, limit=_MAX_FIELDS):
        if number == 5:
            contents.append(wire.as_bytes(value))
        elif number == 3:
            shape += [wire.signed(value)] if isinstance(value, int) else wire.read_integers(value, limit=_MAX_DIMENSIONS)
        elif number == 1:
            name = str(wire.as_bytes(value), "utf-8")
        elif number == 2:
            datatype = str(wire.as_bytes(value), "utf-8")
        elif number == 4:
            parameters_of({"parameters": _parameters([wire.as_bytes(value)])}, "input")
    return _Tensor(name, datatype, tuple(shape)), contents


@lru_cache(maxsize=256)
def _cached_tensor(message: bytes) -> _Tensor:
    tensor, contents = _tensor(memoryview(message))
    if contents:
        raise RequestError(400, "an input has contents beside raw_input_contents")
    return tensor


def _output(message: memoryview) -> dict[str, Any]:
    """An InferRequestedOutputTensor, as an entry of the same form in JSON."""
    name, parameters = "", []
    for number, _, value in wire.fields(message, limit=_MAX_FIELDS):
        if number == 1:
            name = str(wire.as_bytes(value), "utf-8")
        elif number == 2:
            parameters.append(wire.as_bytes(value))
    return {"name": name, "parameters": _parameters(parameters)}


@lru_cache(maxsize=256)
def _cached_output(message: bytes) -> dict[str, Any]:
    return _output(memoryview(message))


def _parameters(entries: Sequence[memoryview]) -> dict[str, bool | int | str]:
    """A map of InferParameter; a number with a fraction counts as text, because no parameter that we know has one."""
    parameters: dict[str, bool | int | str] = {}
    for entry in entries:
        name, parameter = "", memoryview(b"")
        for number, _, value in wire.fields(entry, limit=_MAX_FIELDS):
            if number == 1:
                name = str(wire.as_bytes(value), "utf-8")
            elif number == 2:
                parameter = wire.as_bytes(value)
        parameters[name] = False  # an InferParameter that is not written is that of its first choice
        for number, _, choice in wire.fields(parameter, limit=_MAX_FIELDS):
            if isinstance(choice, int):
                parameters[name] = bool(choice) if number == 1 else choice
            else:
                parameters[name] = str(choice, "utf-8") if number == 3 else "a number"
    return parameters


def _encode(model: ModelInfo, correlation: str, wanted: Sequence[Wanted], arrays: Mapping[str, Array]) -> Answer:
    sent = [output.sent(model, arrays[output.spec.name]) for output in wanted]
    # Raw contents are one list beside the outputs, so either all outputs have an entry or none.
    raw = any(output.binary for output in wanted) or any(spec.datatype not in CONTENTS for spec, _ in sent)
    parts = [_model_head(model.name, model.version)]
    blobs: list[bytes] = []
    if correlation:
        parts.append(wire.field(3, correlation))
    for spec, array in sent:
        if raw:
            parts.append(_raw_output(spec.name, spec.datatype, array.shape))
            blob = to_bytes(spec, array)
            blobs += (wire.head(6, len(blob)), blob)
        else:
            tensor = _output_head(spec.name, spec.datatype, array.shape) + wire.field(5, to_contents(spec, array.reshape(-1)))
            parts.append(wire.field(5, tensor))
    return Answer(200, b"".join(parts + blobs), MESSAGE)


@lru_cache(maxsize=16)
def _model_head(name: str, version: str) -> bytes:
    return wire.field(1, name) + wire.field(2, version)


@lru_cache(maxsize=256)
def _output_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return wire.field(1, name) + wire.field(2, datatype) + wire.integers(3, shape)


@lru_cache(maxsize=256)
def _raw_output(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return wire.field(5, _output_head(name, datatype, shape))
