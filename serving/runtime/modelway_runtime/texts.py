"""BYTES tensors. The engine's strings are text, so each element must be UTF-8; how many there may be is bounded."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any

import numpy as np

from .datatypes import Array
from .errors import RequestError

MAX_TEXTS = 1 << 17  # each costs about a microsecond
_LENGTH = struct.Struct("<I")


def texts(name: str, values: list[str]) -> Array:
    """A flat object array of strings. Raises RequestError 413 for too many, 400 for what has no UTF-8 form."""
    _check_number(name, len(values))
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise RequestError(400, f"input {name}: BYTES must be UTF-8 text") from None
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def split_texts(name: str, data: memoryview, num_values: int) -> Array:
    """A flat object array of strings, of their binary form: 4 bytes of little-endian length, then the bytes, each.

    Raises:
        RequestError: 400 if there are more or fewer than `num_values`, or one is not UTF-8; 413 if there are too many.
    """
    _check_number(name, num_values)
    values, offset, end = [], 0, len(data)
    for index in range(num_values):
        start = offset + _LENGTH.size
        if start > end:
            raise RequestError(400, f"input {name}: expected {num_values} BYTES elements, the data ends within number {index + 1}")
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        if offset > end:
            raise RequestError(400, f"input {name}: BYTES element {index + 1} is longer than the data")
        values.append(_text(name, bytes(data[start:offset])))
    if offset != end:
        raise RequestError(400, f"input {name}: {end - offset} bytes are left after {num_values} BYTES elements")
    array = np.empty(num_values, dtype=object)
    array[:] = values
    return array


def join_texts(array: Array) -> bytes:
    """The binary form of an object array of strings, row-major."""
    encoded = [str(value).encode() for value in array.ravel()]
    return b"".join(part for value in encoded for part in (_LENGTH.pack(len(value)), value))


def one_text(name: str, data: memoryview) -> str:
    """A whole body as one string. Raises RequestError 400 if it is not UTF-8."""
    return _text(name, bytes(data))


def from_base64(name: str, value: Any) -> str:
    """The string of `{"b64": "..."}`. Raises RequestError 400."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        raw = None
    if raw is None:
        raise RequestError(400, f"input {name}: b64 must be a string in base64")
    return _text(name, raw)


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RequestError(400, f"input {name}: BYTES must be UTF-8 text") from None


def _check_number(name: str, num_values: int) -> None:
    if num_values > MAX_TEXTS:
        raise RequestError(413, f"input {name}: at most {MAX_TEXTS} BYTES elements a request, got more")
