"""TensorFlow Serving's REST API (KServe calls it v1), and TorchServe's bare rows.

https://www.tensorflow.org/tfx/serving/api_rest

    {"instances": [row, ...]}           rows; a row is the value of the only input, or an object of all inputs
    {"inputs": {"name": [row, ...]}}    columns; the name may be left out where there is one input
    [row, ...]                          TorchServe's path only
    {"b64": "aGVsbG8="}                 an element of a BYTES input

Where the model declares a tokenizer, a row may also be a text. A body that is an image or a text is answered with labels,
where the model has them: {"label": score, ...}, the best first.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from .errors import RequestError
from .jsons import dumps, parse
from .messages import REQUEST_ID_HEADER, Answer, Decoded, Headers, ModelInfo, check_rows, complete, names, unknown
from .negotiation import is_declared, transform_of, wants_binary
from .raw import check_raw_output, raw_answer
from .tensors import Array, Spec, from_json, to_json
from .texts import from_base64

SIGNATURE_NAME = "serving_default"
_MAX_DEPTH = 32  # numpy has no more dimensions


def decode_v1(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    """A `:predict` request. Raises RequestError 4xx."""
    transform = transform_of(model, headers, body)
    binary = _wants_raw(model, headers)
    if transform is not None:
        labelled = is_declared(transform)
        return _decoded(model, headers, transform(model, body), "predictions", binary=binary, labelled=labelled)
    document = parse(body, floats=model.takes_floats)
    request = document.value
    if type(request) is not dict:
        raise RequestError(400, "expected a JSON object")
    signature_name = request.get("signature_name", SIGNATURE_NAME)
    if type(signature_name) is not str or signature_name != SIGNATURE_NAME:
        raise RequestError(400, f"unknown signature_name; there is one, {SIGNATURE_NAME}")
    if ("instances" in request) == ("inputs" in request):
        raise RequestError(400, 'expected either "instances" (rows) or "inputs" (columns)')
    if "instances" in request:
        inputs = _from_rows(model, request["instances"], literals=document.literals)
        return _decoded(model, headers, inputs, "predictions", binary=binary)
    inputs = _from_columns(model, request["inputs"], literals=document.literals)
    return _decoded(model, headers, inputs, "outputs", binary=binary)


def decode_predictions(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded:
    """A request to TorchServe's path. Raises RequestError 4xx."""
    transform = transform_of(model, headers, body)
    binary = _wants_raw(model, headers)
    if transform is not None:
        return _decoded(model, headers, transform(model, body), "", binary=binary, labelled=is_declared(transform))
    document = parse(body, floats=model.takes_floats)
    rows = document.value
    if type(rows) is dict:
        if "instances" not in rows:
            raise RequestError(400, 'expected an array of rows, or {"instances": rows}')
        rows = rows["instances"]
    return _decoded(model, headers, _from_rows(model, rows, literals=document.literals), "", binary=binary)


def _wants_raw(model: ModelInfo, headers: Headers) -> bool:
    binary = wants_binary(headers)
    if binary:
        check_raw_output(model)
    return binary


def _decoded(model: ModelInfo, headers: Headers, inputs: tuple[Array, ...], key: str, *, binary: bool, labelled: bool = False) -> Decoded:
    """The request, to be answered with `{key: ...}`, with bare rows if there is no key, or with raw bytes.

    Args:
        labelled: The rows of the answer are labels, if the model has any; without a key it is that of the only row.
    """

    def encode(outputs: Mapping[str, Array]) -> Answer:
        if binary:
            return raw_answer(model, outputs)
        if labelled and model.labels:
            rows = _labelled_rows(model, outputs)
            return Answer(200, dumps({key: rows} if key else rows[0]))
        data = dumps(_columns(model, outputs) if key == "outputs" else _rows(model, outputs))
        return Answer(200, b'{"%b":%b}' % (key.encode(), data) if key else data)

    check_rows(model, inputs[0].shape[0])
    return Decoded(inputs, encode, headers.get(REQUEST_ID_HEADER, ""))


def _from_rows(model: ModelInfo, rows: Any, *, literals: bool) -> tuple[Array, ...]:
    if type(rows) not in (list, np.ndarray) or len(rows) == 0:
        raise RequestError(400, "expected an array with at least one row")
    check_rows(model, len(rows))
    if type(rows[0]) is not dict or _is_base64(model, rows[0]):
        if model.texts is not None and type(rows[0]) in (str, dict):
            return complete(model, {model.texts.name: _tensor(model.texts.spec, rows, literals=literals)})
        if len(model.inputs) > 1:
            raise RequestError(400, f"each row must be an object with the inputs {names(model.inputs)}")
        return complete(model, {model.inputs[0].name: _tensor(model.inputs[0], rows, literals=literals)})
    wanted: Set[str] = model.inputs_by_name.keys()
    if model.texts is not None and rows[0].keys() == {model.texts.name}:
        wanted = {model.texts.name}
    if any(type(row) is not dict or row.keys() != wanted for row in rows):
        raise RequestError(400, f"each row must be an object with exactly the inputs {names(model.inputs)}")
    columns = {name: _tensor(model.accepted[name], [row[name] for row in rows], literals=literals) for name in wanted}
    return complete(model, columns)


def _from_columns(model: ModelInfo, columns: Any, *, literals: bool) -> tuple[Array, ...]:
    if type(columns) is not dict or _is_base64(model, columns):
        if len(model.inputs) > 1:
            raise RequestError(400, f'"inputs" must be an object with the inputs {names(model.inputs)}')
        columns = {model.inputs[0].name: columns}
    if not columns.keys() <= model.accepted.keys():
        raise RequestError(400, unknown("input", tuple(model.accepted.values())))
    for data in columns.values():
        if type(data) in (list, np.ndarray):
            check_rows(model, len(data))
    by_name = model.accepted
    return complete(model, {name: _tensor(by_name[name], data, literals=literals) for name, data in columns.items()})


def _is_base64(model: ModelInfo, value: dict[str, Any]) -> bool:
    return value.keys() == {"b64"} and "b64" not in model.inputs_by_name


def _tensor(spec: Spec, data: Any, *, literals: bool) -> Array:
    return from_json(spec, _without_base64(spec, data) if spec.datatype == "BYTES" else data, literals=literals)


def _without_base64(spec: Spec, data: Any, depth: int = 0) -> Any:
    """Nested lists with each `{"b64": ...}` replaced by its text."""
    if type(data) is list and depth < _MAX_DEPTH:
        return [_without_base64(spec, item, depth + 1) for item in data]
    return from_base64(spec.name, data["b64"]) if type(data) is dict and data.keys() == {"b64"} else data


def _rows(model: ModelInfo, outputs: Mapping[str, Array]) -> Any:
    if len(model.outputs) == 1:
        return to_json(model.outputs[0], outputs[model.outputs[0].name])
    columns = [_listed(to_json(spec, outputs[spec.name])) for spec in model.outputs]
    return [dict(zip(model.outputs_by_name, values, strict=True)) for values in zip(*columns, strict=True)]


def _labelled_rows(model: ModelInfo, outputs: Mapping[str, Array]) -> list[Any]:
    """For each row {label: score}, or {output: {label: score}} where several outputs have labels."""
    columns = {name: labels.objects(outputs[name]) for name, labels in model.labels.items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _columns(model: ModelInfo, outputs: Mapping[str, Array]) -> Any:
    columns = {spec.name: to_json(spec, outputs[spec.name]) for spec in model.outputs}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else list(values.tolist())
