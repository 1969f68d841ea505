"""Datatypes of the Open Inference Protocol v2: what each is in numpy, on the wire and in JSON. Pure tables and conversions.

FP32     float32 toward the model, 4 little-endian bytes on the wire, a number in JSON
BF16     float32 toward the model (numpy has no bfloat16), the upper 16 bits of it on the wire, a number in JSON
BYTES    text (numpy object arrays of `str`, what ONNX Runtime's string tensors are), on the wire 4 bytes of
         little-endian length and UTF-8 bytes for each element, a string in JSON
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

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
    "BF16": "float32",
    "BYTES": "object",
}
# Bytes of one element on the wire; BYTES has no fixed size.
WIRE_BYTES: Mapping[str, int] = {"BF16": 2} | {
    name: np.dtype(dtype).itemsize for name, dtype in NUMPY_DTYPES.items() if name not in ("BF16", "BYTES")
}
# Codes of Python's struct module that refuse what is no number and what is out of range. It packs a list three times faster than numpy
# converts it. BOOL has none: "?" takes anything for true.
STRUCT_CODES: Mapping[str, str] = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
    "BF16": "f",
}


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of bfloat16 bits, any shape; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bfloat16 bits nearest to float32 values, ties to even; any shape. NaN stays NaN, what is too large becomes infinite.

    1.00390625 = 0x3f808000, halfway between 0x3f80 and 0x3f81    -> 0x3f80, the even one
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def round_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Float32 values rounded to what bfloat16 holds; any shape."""
    return from_bf16(to_bf16(values))
