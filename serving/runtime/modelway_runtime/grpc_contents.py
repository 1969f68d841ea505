"""InferTensorContents: the typed lists of numbers of v2 over gRPC, for clients that send no raw bytes.

BOOL                  field 1, varints           FP32   field 6, 4 bytes each
INT8, INT16, INT32    field 2, varints           FP64   field 7, 8 bytes each
INT64                 field 3, varints           BYTES  field 8, one field for each element
UINT8, UINT16, UINT32 field 4, varints
UINT64                field 5, varints           FP16 and BF16 have none: they are always raw
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from . import wire
from .datatypes import Array
from .errors import RequestError
from .tensors import Spec
from .texts import one_text, texts

Contents = Sequence[memoryview]  # the bytes of one message, in pieces


class _Field(NamedTuple):
    number: int
    wire_type: int  # of one element
    dtype: str  # of the elements as they are on the wire


CONTENTS: Mapping[str, _Field] = {
    "BOOL": _Field(1, wire.VARINT, "<u8"),
    "INT8": _Field(2, wire.VARINT, "<i8"),
    "INT16": _Field(2, wire.VARINT, "<i8"),
    "INT32": _Field(2, wire.VARINT, "<i8"),
    "INT64": _Field(3, wire.VARINT, "<i8"),
    "UINT8": _Field(4, wire.VARINT, "<u8"),
    "UINT16": _Field(4, wire.VARINT, "<u8"),
    "UINT32": _Field(4, wire.VARINT, "<u8"),
    "UINT64": _Field(5, wire.VARINT, "<u8"),
    "FP32": _Field(6, wire.FIXED32, "<f4"),
    "FP64": _Field(7, wire.FIXED64, "<f8"),
    "BYTES": _Field(8, wire.BYTES, ""),
}


def from_contents(spec: Spec, contents: Contents, shape: Sequence[int]) -> Array:
    """An array of the spec's dtype and of a shape that was checked; its numbers may not be finite.

    Raises:
        RequestError: 400, if the contents are not exactly those of such a tensor.
        WireError: If they are no message.
    """
    known = CONTENTS.get(spec.datatype)
    if known is None:
        raise RequestError(400, f"input {spec.name}: {spec.datatype} must be sent in raw_input_contents")
    num_values = math.prod(shape)
    # Every element may be a field of its own, so the shape, which is the model's, bounds the work.
    found = [
        piece
        for message in contents
        for number, kind, piece in wire.fields(message, limit=num_values + 1)
        if _is_of(known, number, kind, spec)
    ]
    if known.wire_type == wire.BYTES:
        _check_number(spec, shape, num_values, len(found))
        return texts(spec.name, [one_text(spec.name, wire.as_bytes(piece)) for piece in found]).reshape(shape)
    values = _joined(known, found)
    _check_number(spec, shape, num_values, len(values))
    return _narrowed(spec, values).reshape(shape)


def _is_of(known: _Field, number: int, kind: int, spec: Spec) -> bool:
    if number > 8:
        return False
    if number != known.number or kind not in (known.wire_type, wire.BYTES):
        raise RequestError(400, f"input {spec.name}: {spec.datatype} must be in the field {known.number} of its contents")
    return True


def _joined(known: _Field, pieces: Sequence[wire.Value]) -> Array:
    if known.wire_type == wire.VARINT:
        arrays: list[Array] = [np.array([piece], np.uint64) if isinstance(piece, int) else wire.read_varints(piece) for piece in pieces]
    else:
        arrays = [wire.read_fixed(wire.as_bytes(piece), known.dtype) for piece in pieces]
    if not arrays:
        return np.empty(0, known.dtype)
    joined: Array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.view(known.dtype)


def _narrowed(spec: Spec, values: Array) -> Array:
    if spec.datatype == "BOOL":
        truths: Array = values != 0
        return truths
    if values.dtype.kind in "iu" and values.dtype.itemsize > spec.dtype.itemsize:
        limits = np.iinfo(spec.dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise RequestError(400, f"input {spec.name}: a value is outside the range of {spec.datatype}")
    return values.astype(spec.dtype, copy=False)


def _check_number(spec: Spec, shape: Sequence[int], num_values: int, got: int) -> None:
    if got != num_values:
        raise RequestError(400, f"input {spec.name}: shape {list(shape)} needs {num_values} values, got {got}")


def to_contents(spec: Spec, array: Array) -> bytes:
    """The message of a flat output of a datatype in CONTENTS."""
    known = CONTENTS[spec.datatype]
    if known.wire_type == wire.BYTES:
        return b"".join(wire.field(known.number, str(value)) for value in array)
    if known.wire_type == wire.VARINT:
        return wire.field(known.number, wire.varints(array.astype(known.dtype).view(np.uint64)))
    return wire.field(known.number, array.astype(known.dtype, copy=False).tobytes())
