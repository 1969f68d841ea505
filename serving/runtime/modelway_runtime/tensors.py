"""Tensors of requests and answers: what the signature says, and arrays made of untrusted JSON or bytes, and back."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from .datatypes import NUMPY_DTYPES, STRUCT_CODES, WIRE_BYTES, Array, from_bf16, round_bf16, to_bf16
from .errors import RequestError
from .jsons import dumps
from .texts import join_texts, split_texts, texts

__all__ = ["Array", "Spec", "check_shape", "from_bytes", "from_json", "to_bytes", "to_json"]

_ACCEPTED_TYPES: Mapping[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "O": {str}}
_NESTED = (list, np.ndarray)
_JSON_TYPES: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a fraction",
    type(None): "null",
}


@dataclass(frozen=True)
class Spec:
    """One tensor of the signature: its name, datatype and shape; -1 is a free dimension, the first is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype toward the model: float32 for BF16, object (of `str`) for BYTES."""
        return np.dtype(NUMPY_DTYPES[self.datatype])

    @cached_property
    def v2_head(self) -> bytes:
        """The tensor's entry in a v2 answer, up to its shape."""
        return dumps({"name": self.name, "datatype": self.datatype})[:-1] + b',"shape":'

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Of an entry in `signature.json`."""
        return cls(str(data["name"]), str(data["datatype"]), tuple(int(d) for d in data["shape"]))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape is such a tensor."""
        return len(shape) == len(self.shape) and all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True))


def from_json(spec: Spec, data: Any, *, shape: Sequence[int] | None = None, literals: bool = True) -> Array:
    """An array of the spec's dtype made of JSON values.

    Types and sizes are checked before numpy sees the values: left to itself it would parse strings, take true for 1,
    and give every element of a list the width of its longest string.

    Args:
        data: Nested lists in row-major order; or, where `shape` is given, also one flat list. For a float input a flat
            list may be a float64 array.
        shape: The shape that the request claims, already checked by `check_shape`.
        literals: Whether `true` or `false` may be among the values; see `jsons.Document`.

    Raises:
        RequestError: 400, naming the tensor, what was expected and what was got.
    """
    if type(data) is not list and type(data) is not np.ndarray:
        raise RequestError(400, f"input {spec.name}: expected an array of {spec.datatype}, got {_json_type(data)}")
    if shape is not None and not (len(data) and type(data[0]) in _NESTED):
        if len(data) != math.prod(shape):
            raise RequestError(400, f"input {spec.name}: shape {_short(shape)} needs {math.prod(shape)} values, got {len(data)}")
        return _from_leaves(spec, data, literals=literals).reshape(shape)
    leaves, nested_shape = _flatten(spec, data)
    if shape is not None and tuple(shape) != nested_shape:
        raise RequestError(400, f"input {spec.name}: shape says {_short(shape)}, data is nested as {_short(nested_shape)}")
    check_shape(spec, nested_shape)
    return _from_leaves(spec, leaves, literals=literals).reshape(nested_shape)


def _flatten(spec: Spec, data: list[Any] | Array) -> tuple[list[Any] | Array, tuple[int, ...]]:
    level: Any = data
    shape = [len(data)]
    while len(level) and (kind := type(level[0])) in _NESTED:
        if len(shape) == len(spec.shape):
            raise RequestError(400, f"input {spec.name}: nested deeper than its shape {list(spec.shape)}")
        if len(level) == 1:
            level = level[0]
            shape.append(len(level))
            continue
        if set(map(type, level)) != {kind} or len(set(map(len, level))) != 1:
            raise RequestError(400, f"input {spec.name}: rows differ in length or depth; expected shape {list(spec.shape)}")
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level)) if kind is list else np.concatenate(level)
    return level, tuple(shape)


def _from_leaves(spec: Spec, leaves: list[Any] | Array, *, literals: bool) -> Array:
    if isinstance(leaves, np.ndarray):
        with np.errstate(over="ignore"):
            return _in_range(spec, leaves.astype(spec.dtype))
    code = STRUCT_CODES.get(spec.datatype)
    if code is None:
        _check_types(spec, leaves)
        return texts(spec.name, leaves) if spec.datatype == "BYTES" else np.array(leaves, dtype=spec.dtype)
    try:
        array: Array = np.frombuffer(struct.pack(f"={len(leaves)}{code}", *leaves), dtype=spec.dtype)
    except (struct.error, OverflowError, TypeError):
        _check_types(spec, leaves)
        raise RequestError(400, f"input {spec.name}: a value is outside the range of {spec.datatype}") from None
    # struct takes true for 1: only a list with a 0 or a 1 in it can hold one.
    if literals and ((array == 0) | (array == 1)).any():
        _check_types(spec, leaves)
    if spec.datatype == "BF16":
        return _in_range(spec, array)
    return array


def _in_range(spec: Spec, array: Array) -> Array:
    """The finite numbers of a request, after they became the input's; rounded if it is BF16."""
    if spec.datatype == "BF16":
        array = round_bf16(array)
    if not np.isfinite(array).all():
        raise RequestError(400, f"input {spec.name}: a value is outside the range of {spec.datatype}")
    return array


def _check_types(spec: Spec, leaves: list[Any]) -> None:
    types, accepted = set(map(type, leaves)), _ACCEPTED_TYPES[spec.dtype.kind]
    if list in types:
        raise RequestError(400, f"input {spec.name}: nested unevenly, or deeper than its shape {list(spec.shape)}")
    if not types <= accepted:
        got = " and ".join(sorted(_json_type(kind) for kind in types - accepted))
        raise RequestError(400, f"input {spec.name}: expected {spec.datatype} values, got {got}")


def from_bytes(spec: Spec, data: memoryview, *, shape: Sequence[int]) -> Array:
    """An array over raw little-endian bytes, without copying where numpy has the datatype; its numbers may not be finite.

    Args:
        shape: Already checked by `check_shape`.

    Raises:
        RequestError: 400, if the bytes are not exactly those of such a tensor.
    """
    num_values = math.prod(shape)
    if spec.datatype == "BYTES":
        return split_texts(spec.name, data, num_values).reshape(shape)
    expected = num_values * WIRE_BYTES[spec.datatype]
    if len(data) != expected:
        raise RequestError(400, f"input {spec.name}: expected {expected} bytes for shape {_short(shape)}, got {len(data)}")
    if spec.datatype == "BF16":
        return from_bf16(np.frombuffer(data, dtype="<u2")).reshape(shape)
    array: Array = np.frombuffer(data, dtype=spec.dtype)
    if sys.byteorder == "big":
        array = array.byteswap()
    if spec.datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise RequestError(400, f"input {spec.name}: expected bytes 0 and 1 for BOOL")
    return array.reshape(shape)


def to_bytes(spec: Spec, array: Array) -> bytes:
    """An output as it goes over the wire, little-endian and row-major."""
    if spec.datatype == "BYTES":
        return join_texts(array)
    if spec.datatype == "BF16":
        array = to_bf16(array)
    return array.byteswap().tobytes() if sys.byteorder == "big" else array.tobytes()


def to_json(spec: Spec, array: Array) -> Any:
    """An output as `jsons.dumps` takes it, of the same shape."""
    if spec.datatype == "BYTES":
        return array.tolist()
    return round_bf16(array) if spec.datatype == "BF16" else np.ascontiguousarray(array)


def check_shape(spec: Spec, shape: Sequence[Any]) -> None:
    """Raise RequestError 400 unless `shape` is a tuple of sizes that fits the spec, with at least one row."""
    for size in shape:
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise RequestError(400, f"input {spec.name}: shape must be non-negative 64-bit integers")
    if not spec.fits(shape):
        raise RequestError(400, f"input {spec.name}: expected shape {list(spec.shape)}, got {_short(shape)}")
    if 0 in shape:
        raise RequestError(400, f"input {spec.name}: is empty (shape {_short(shape)})")


def _json_type(data: Any) -> str:
    kind = data if isinstance(data, type) else type(data)
    return _JSON_TYPES.get(kind, "something else")


def _short(shape: Sequence[int]) -> str:
    text = str(list(shape[:8]))
    return text if len(text) < 100 and len(shape) <= 8 else f"{len(shape)} dimensions"
