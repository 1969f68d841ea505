"""Protobuf's wire format, as much of it as our messages need: no generated code, no library that an archive would have to bring.

    field     tag (number << 3 | wire type) as a varint, then the value
    varint    seven bits a byte, least significant first, the eighth bit says that more follow
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are long gone and refused

Value = int | memoryview  # an integer for VARINT, else the bytes of the field


class WireError(ValueError):
    """Bytes that are no protobuf message; the message is one line that does not repeat them."""


# --- writing


def varint(value: int) -> bytes:
    """A number as it is written, 1 to 10 bytes; a negative one as its 64-bit two's complement."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


def head(number: int, num_bytes: int) -> bytes:
    """What stands before the bytes of a field."""
    return varint(number << 3 | BYTES) + varint(num_bytes)


def field(number: int, content: bytes | str) -> bytes:
    """A field of bytes, text or a message."""
    data = content.encode() if isinstance(content, str) else content
    return head(number, len(data)) + data


def flag(number: int, value: bool) -> bytes:
    """A field of a boolean; false is what is not written."""
    return varint(number << 3 | VARINT) + b"\x01" if value else b""


def integers(number: int, values: Sequence[int]) -> bytes:
    """A packed, repeated field of a few integers."""
    return field(number, b"".join(map(varint, values)))


def varints(values: npt.NDArray[np.uint64]) -> bytes:
    """Many numbers [n], one after the other."""
    lengths = np.ones(len(values), np.int64)
    for bits in range(7, 64, 7):
        lengths += values >= np.uint64(1 << bits)
    starts = np.cumsum(lengths) - lengths
    written = np.empty(int(lengths.sum()), np.uint8)
    for index in range(int(lengths.max(initial=0))):
        longer = lengths > index
        groups = (values[longer] >> np.uint64(7 * index)) & np.uint64(0x7F)
        written[starts[longer] + index] = groups | np.where(lengths[longer] > index + 1, np.uint64(0x80), np.uint64(0))
    return written.tobytes()


# --- reading


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """The unsigned 64-bit number at a position, and the position behind it. Raises WireError."""
    value = shift = 0
    end = len(data)
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
        shift += 7
        if shift == 70:
            raise WireError("a number has more than 10 bytes")
    raise WireError("a field ends behind its message")


def fields(data: memoryview, *, limit: int) -> list[tuple[int, int, Value]]:
    """Number, wire type and value of each field, in the order in which they come. Raises WireError, also for more than `limit`."""
    found: list[tuple[int, int, Value]] = []
    position, size = 0, len(data)
    while position < size:
        if len(found) == limit:
            raise WireError(f"a message has more than {limit} fields")
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = read_varint(data, position - 1)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError("no such field number")
        if kind == BYTES:
            # Most lengths have one byte; a loop of its own for those would cost as much again.
            if position < size and (length := data[position]) < 0x80:
                position += 1
            else:
                length, position = read_varint(data, position)
        elif kind == VARINT:
            value, position = read_varint(data, position)
            found.append((number, kind, value))
            continue
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise WireError("no such wire type")
        stop = position + length
        if stop > size:
            raise WireError("a field ends behind its message")
        found.append((number, kind, data[position:stop]))
        position = stop
    return found


def as_bytes(value: Value) -> memoryview:
    """The value of a field that must not be a varint. Raises WireError."""
    if isinstance(value, int):
        raise WireError("a field has the wrong wire type")
    return value


def read_varints(data: memoryview) -> npt.NDArray[np.uint64]:
    """All numbers of a packed field, [n]. Raises WireError."""
    written = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(written < 0x80)
    if len(written) == len(ends):
        return written.astype(np.uint64)
    if written[-1] >= 0x80:
        raise WireError("a field ends behind its message")
    starts = np.concatenate([np.zeros(1, ends.dtype), ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise WireError("a number has more than 10 bytes")
    values: npt.NDArray[np.uint64] = np.zeros(len(ends), np.uint64)
    for index in range(int(lengths.max())):
        longer: npt.NDArray[Any] = lengths > index
        values[longer] |= (written[starts[longer] + index] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * index)
    return values


def read_fixed(data: memoryview, dtype: str) -> npt.NDArray[Any]:
    """All numbers of a packed field of fixed32 or fixed64, [n], without copying. Raises WireError."""
    if len(data) % np.dtype(dtype).itemsize:
        raise WireError("a list of numbers ends within one")
    return np.frombuffer(data, dtype)


def read_integers(data: memoryview, *, limit: int) -> list[int]:
    """The few int64 numbers of a packed field. Raises WireError, also for more than `limit`."""
    values: list[int] = []
    position = 0
    while position < len(data):
        if len(values) == limit:
            raise WireError(f"a list has more than {limit} numbers")
        value, position = read_varint(data, position)
        values.append(signed(value))
    return values


def signed(value: int) -> int:
    """A varint read as an int64."""
    return value - (1 << 64) if value >= 1 << 63 else value
