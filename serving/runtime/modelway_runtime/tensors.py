"""Tensors of requests: what the signature says, and arrays made of untrusted JSON or bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import RequestError

Array = npt.NDArray[Any]

# Datatypes of the Open Inference Protocol v2 -> numpy.
NUMPY_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_ACCEPTED_TYPES: Mapping[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
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

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype."""
        return np.dtype(NUMPY_DTYPES[self.datatype])

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Of an entry in `signature.json`."""
        return cls(str(data["name"]), str(data["datatype"]), tuple(int(d) for d in data["shape"]))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape is such a tensor."""
        return len(shape) == len(self.shape) and all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True))


def from_json(spec: Spec, data: Any, *, shape: Sequence[int] | None = None) -> Array:
    """An array of the spec's dtype made of JSON numbers.

    Types and sizes are checked before numpy sees the values: left to itself it would parse strings, take true for 1,
    and give every element of a list the width of its longest string.

    Args:
        data: Nested lists in row-major order; or, where `shape` is given, also one flat list.
        shape: The shape that the request claims, already checked by `check_shape`.

    Raises:
        RequestError: 400, naming the tensor, what was expected and what was got.
    """
    if type(data) is not list:
        raise RequestError(400, f"input {spec.name}: expected an array of {spec.datatype}, got {_json_type(data)}")
    if shape is not None and list not in set(map(type, data)):
        if len(data) != math.prod(shape):
            raise RequestError(400, f"input {spec.name}: shape {_short(shape)} needs {math.prod(shape)} values, got {len(data)}")
        return _from_leaves(spec, data).reshape(tuple(shape))
    leaves, nested_shape = _flatten(spec, data)
    if shape is not None and tuple(shape) != nested_shape:
        raise RequestError(400, f"input {spec.name}: shape says {_short(shape)}, data is nested as {_short(nested_shape)}")
    check_shape(spec, nested_shape)
    return _from_leaves(spec, leaves).reshape(nested_shape)


def _flatten(spec: Spec, data: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    level, shape = data, [len(data)]
    while level and type(level[0]) is list:
        if len(shape) == len(spec.shape):
            raise RequestError(400, f"input {spec.name}: nested deeper than its shape {list(spec.shape)}")
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            raise RequestError(400, f"input {spec.name}: rows differ in length or depth; expected shape {list(spec.shape)}")
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
    return level, tuple(shape)


def _from_leaves(spec: Spec, leaves: list[Any]) -> Array:
    dtype, types = spec.dtype, set(map(type, leaves))
    accepted = _ACCEPTED_TYPES[dtype.kind]
    if not types <= accepted:
        got = " and ".join(sorted(_json_type(kind) for kind in types - accepted))
        raise RequestError(400, f"input {spec.name}: expected {spec.datatype} values, got {got}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(leaves, dtype=dtype)
    except OverflowError:
        array = None
    if array is None or (dtype.kind == "f" and not np.isfinite(array).all()):
        raise RequestError(400, f"input {spec.name}: a value is outside the range of {spec.datatype}")
    return array


def from_bytes(spec: Spec, data: memoryview, *, shape: Sequence[int]) -> Array:
    """An array over raw little-endian bytes, without copying. Raises RequestError 400."""
    expected = math.prod(shape) * spec.dtype.itemsize
    if len(data) != expected:
        raise RequestError(400, f"input {spec.name}: expected {expected} bytes for shape {list(shape)}, got {len(data)}")
    array = np.frombuffer(data, dtype=spec.dtype.newbyteorder("<")).reshape(tuple(shape))
    if spec.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(400, f"input {spec.name}: contains NaN or infinity")
    if spec.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise RequestError(400, f"input {spec.name}: expected bytes 0 and 1 for BOOL")
    return array


def check_shape(spec: Spec, shape: Sequence[Any]) -> None:
    """Raise RequestError 400 unless `shape` is a tuple of sizes that fits the spec, with at least one row."""
    if any(type(d) is not int or not 0 <= d < 1 << 63 for d in shape):
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
