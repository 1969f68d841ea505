"""A body that is the bytes of the model's only input, and an answer that is the bytes of its only output; no names, no shapes.

As in Triton's raw binary request: the number of rows follows from the length, so only the batch dimension may be free.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md#raw-binary-request
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .datatypes import WIRE_BYTES
from .errors import RequestError
from .messages import BINARY, Answer, ModelInfo, names
from .tensors import Array, from_bytes, to_bytes
from .texts import one_text


def raw_inputs(model: ModelInfo, body: memoryview) -> tuple[Array, ...]:
    """The inputs of a raw body: rows one after the other; of a BYTES input one row, the whole body. Raises RequestError 4xx.

    How many rows there may be is checked by the protocol.
    """
    if len(model.inputs) != 1:
        raise RequestError(400, f"raw bytes are for models with one input; this one has {names(model.inputs)}")
    (spec,) = model.inputs
    row = spec.shape[1:]
    if -1 in row:
        raise RequestError(400, f"raw bytes are for inputs whose shape is fixed but for the batch; {spec.name} has {list(spec.shape)}")
    if spec.datatype == "BYTES":
        if math.prod(row) != 1:
            raise RequestError(400, f"raw bytes are one BYTES element; a row of {spec.name} has {math.prod(row)}")
        text = np.empty((1, *row), dtype=object)
        text.fill(one_text(spec.name, body))
        return (text,)
    row_bytes = math.prod(row) * WIRE_BYTES[spec.datatype]
    if len(body) == 0 or len(body) % row_bytes:
        raise RequestError(400, f"input {spec.name}: expected a multiple of {row_bytes} bytes, those of a row, got {len(body)}")
    num_rows = len(body) // row_bytes
    return (from_bytes(spec, body, shape=(num_rows, *row)),)


def check_raw_output(model: ModelInfo) -> None:
    """Raise RequestError 406 unless an answer can be raw bytes."""
    if len(model.outputs) != 1:
        raise RequestError(406, f"raw bytes are for models with one output; this one has {names(model.outputs)}. Accept application/json")


def raw_answer(model: ModelInfo, outputs: Mapping[str, Array]) -> Answer:
    """The bytes of the only output, rows one after the other."""
    (spec,) = model.outputs
    return Answer(200, to_bytes(spec, outputs[spec.name]), BINARY)
