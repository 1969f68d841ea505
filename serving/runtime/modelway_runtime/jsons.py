"""Strict JSON, as fast as the machine allows: orjson where it is installed, the standard library otherwise.

Both ways refuse NaN and infinities, deep nesting, names given twice in one object, and more arrays, objects and
strings than any tensor needs; they say so in one line without repeating the input.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any, NamedTuple

import numpy as np

from .errors import RequestError
from .fast_json import has_more, parse_floats

# Of a body of 16 MB, 5 million empty objects would be half a gigabyte, and so would 3 million short strings.
MAX_CONTAINERS = 500_000
MAX_QUOTES = 2 * MAX_CONTAINERS
# Possessive: to go back would take memory for every character.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _import_orjson() -> Any:
    try:
        return importlib.import_module("orjson")
    except ImportError:
        return None


_orjson = _import_orjson()


class Document(NamedTuple):
    """A parsed request body.

    Attributes:
        value: Lists, dicts and so on; with `floats`, flat lists of numbers may be float64 arrays.
        literals: Whether `true` or `false` may be in it. Where this is False, no value is a boolean.
    """

    value: Any
    literals: bool


def parse(body: bytes | bytearray | memoryview, *, floats: bool = False) -> Document:
    """Parse a request body.

    Args:
        floats: Numbers in lists will become floats, whatever they are: lists of them may come as arrays.

    Raises:
        RequestError: 400 for what is not JSON, 413 for too much of it.
    """
    text = bytes(body)
    if len(text) > MAX_QUOTES:  # in fewer bytes there are not too many of either
        if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
            raise RequestError(413, f"request body has too many arrays and objects (more than {MAX_CONTAINERS})")
        if text.count(b'"') > MAX_QUOTES:
            raise RequestError(413, f"request body has too many strings (more than {MAX_QUOTES // 2})")
    if floats and (value := parse_floats(text)) is not None:
        return Document(value, True)  # in its short lists
    value = _parse(text)
    if _has_repeated_names(value, text):
        raise RequestError(400, "request body is not valid JSON (an object has the same name twice)")
    return Document(value, b"r" in text or b"f" in text)


def loads(body: bytes | bytearray | memoryview) -> Any:
    """The value of a request body. Raises RequestError 400."""
    return parse(body).value


def _parse(text: bytes) -> Any:
    try:
        if _orjson is not None:
            return _orjson.loads(text)
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
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


def _has_repeated_names(value: Any, text: bytes) -> bool:
    """Whether an object of the valid JSON `text`, whose value is `value`, names something twice.

    Each name has a colon behind it, and the parsed objects have each name once. So if there are no more colons than
    names, nothing is repeated. Names are counted without looking at numbers: {"inputs": [{"name": ..., "data": [1, 2]}]} has
    3 of them and 3 colons. Where strings have colons of their own, they are taken out of the count, and everything is looked at.
    """
    if not has_more(text, b":", _count_names(value, thorough=False)):
        return False
    return _STRING.sub(b"", text).count(b":") > _count_names(value, thorough=True)


def _count_names(value: Any, *, thorough: bool) -> int:
    """Names of all objects; if not thorough, of those that can be found without looking at more than the first value of a list."""
    number, stack = 0, [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            number += len(item)
            stack.extend([child for child in item.values() if type(child) is dict or type(child) is list])
        elif item and type(item) is list and (thorough or type(item[0]) is dict or type(item[0]) is list):
            stack.extend([child for child in item if type(child) is dict or type(child) is list])
    return number


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
