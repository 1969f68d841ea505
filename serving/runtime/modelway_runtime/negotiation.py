"""What a body is, by its headers, and what the client wants back.

https://www.rfc-editor.org/rfc/rfc9110#section-12.5

A body is JSON unless its content type says otherwise. Every other content type is a transform: a function from the
body's bytes to the model's inputs, which the model's archive declares. Raw bytes of the one input are built in (raw.py).
A body without a content type that begins as an image does is one, where the model takes images: `curl -T` names no type.
"""

from __future__ import annotations

from collections.abc import Callable

from . import image_input
from .errors import RequestError
from .messages import BINARY, JSON, JSON_LENGTH_HEADER, Headers, ModelInfo
from .raw import raw_inputs
from .tensors import Array

# What `curl -d` says of any body, and so what the examples of most servers send JSON as.
_CURL_DEFAULT = "application/x-www-form-urlencoded"

# The body of a request -> the model's inputs in the order of the signature. Raises RequestError 4xx, nothing else.
Transform = Callable[[ModelInfo, memoryview], tuple[Array, ...]]


# A tokenizer takes about a millisecond for so much.
_QUICK_TEXT_BYTES = 1024
_UTF_8 = ("utf-8", "utf8", "us-ascii")


def transform_of(model: ModelInfo, headers: Headers, body: memoryview) -> Transform | None:
    """What makes tensors of the body; None if it is JSON. Raises RequestError 415."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise RequestError(415, "unsupported content-encoding; send the body as it is (identity)")
    content_type = headers.get("content-type", "")
    if content_type == JSON:
        return None
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in (JSON, "", _CURL_DEFAULT):
        return _undeclared_image(model, media_type, body)
    if media_type == BINARY:
        # With a length of the JSON part it is v2's binary extension; 0 of it is Triton's raw request.
        return None if headers.get(JSON_LENGTH_HEADER.lower(), "0") != "0" else raw_inputs
    transform = model.transforms.get(media_type)
    if transform is None:
        raise RequestError(415, f"unsupported content-type; send {', '.join([JSON, BINARY, *model.transforms])}")
    if media_type.startswith("text/") and _charset(content_type) not in _UTF_8:
        raise RequestError(415, "unsupported charset; send text as UTF-8")
    return transform


def _undeclared_image(model: ModelInfo, media_type: str, body: memoryview) -> Transform | None:
    if media_type != JSON and model.transforms and image_input.is_image(body):
        return model.transforms.get(image_input.CONTENT_TYPES[0])
    return None


def _charset(content_type: str) -> str:
    """The charset of a content type, UTF-8 if it names none."""
    for parameter in content_type.lower().split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            return value.strip().strip('"')
    return _UTF_8[0]


def is_declared(transform: Transform | None) -> bool:
    """Whether a transform is one that the archive declares: then the client sent no tensors, and wants no tensors back."""
    return transform is not None and transform is not raw_inputs


def takes_long(model: ModelInfo, headers: Headers, body: memoryview) -> bool:
    """Whether decoding may take so long that other requests should not wait for it."""
    if not model.transforms:
        return False
    if model.texts is not None:
        return len(body) > _QUICK_TEXT_BYTES
    return headers.get("content-type", "").lower().startswith("image/") or image_input.is_image(body)


def wants_binary(headers: Headers, *, default: bool = False) -> bool:
    """Whether the answer goes as `application/octet-stream`; if not, it is JSON.

    Args:
        default: What a client gets that takes both equally.

    Raises:
        RequestError: 406, if the client takes neither.
    """
    accept = headers.get("accept")
    if accept is None or accept in ("*/*", ""):
        return default
    json_q, binary_q = _quality(accept, JSON), _quality(accept, BINARY)
    if json_q == binary_q == 0:
        raise RequestError(406, f"nothing that the accept header allows; there are {JSON} and {BINARY}")
    return default if json_q == binary_q else binary_q > json_q


def _quality(accept: str, media_type: str) -> float:
    """The weight of a media type, 0 to 1; of the entries that match it, the most specific one counts."""
    best = (-1, 0.0)
    for entry in accept.lower().split(","):
        pattern, *parameters = (part.strip() for part in entry.split(";"))
        specificity = ("*/*", media_type.partition("/")[0] + "/*", media_type).index(pattern) if _matches(pattern, media_type) else -1
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            quality = 0.0
        if specificity >= 0:
            best = max(best, (specificity, quality))
    return best[1]


def _matches(pattern: str, media_type: str) -> bool:
    return pattern in ("*/*", media_type.partition("/")[0] + "/*", media_type)
