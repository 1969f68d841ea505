"""Strict JSON, as fast as the machine allows: orjson where it is installed, the standard library otherwise.

Both ways refuse NaN and infinities, and deep nesting, and say so in one line without repeating the input.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

from .errors import RequestError


def _import_orjson() -> Any:
    try:
        return importlib.import_module("orjson")
    except ImportError:
        return None


_orjson = _import_orjson()


def loads(body: bytes | bytearray | memoryview) -> Any:
    """Parse a request body. Raises RequestError 400."""
    try:
        if _orjson is not None:
            return _orjson.loads(body)
        return json.loads(bytes(body).decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError(400, "request body is nested too deeply") from None
    except UnicodeDecodeError:
        raise RequestError(400, "request body is not valid UTF-8") from None
    except ValueError as error:  # both parsers' own errors derive from it
        position = getattr(error, "pos", None)
        where = "" if position is None else f" at character {position}"
        raise RequestError(400, f"request body is not valid JSON{where} ({getattr(error, 'msg', error)})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def dumps(data: Any) -> bytes:
    """Compact JSON. numpy arrays become nested lists; what is not finite becomes null."""
    if _orjson is not None:
        encoded: bytes = _orjson.dumps(data, default=_listed, option=_orjson.OPT_SERIALIZE_NUMPY)
        return encoded
    return json.dumps(data, default=_listed, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _listed(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"not JSON ({type(value).__name__})")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        listed = value.astype(object)
        listed[~np.isfinite(value)] = None
        return listed.tolist()
    return value.tolist()
