"""The table of abuses: what a client may do wrong, and what it is answered. Tests and docs/reliability.md are made of it.

Each entry is bytes on the wire. They are for the model of `proof.Subject` behind a gateway with the limits below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.reliability.raw_http import request

# Settings of the platform that the table is for: small limits, so that passing them is quick.
LIMITS: Mapping[str, Any] = {
    "max_body_bytes": 1 << 20,
    "gateway_max_header_kib": 32,
    "gateway_header_timeout_s": 2.0,
    "gateway_receive_timeout_s": 3.0,
}


@dataclass(frozen=True, kw_only=True)
class Abuse:
    """One abuse.

    Attributes:
        group: Heading of the document.
        status: What it is answered.
        says: Part of the text under "error".
        data: The bytes, with `{key}` replaced by a valid API key.
    """

    group: str
    name: str
    status: int
    says: str
    data: bytes

    def bytes_with(self, key: str) -> bytes:
        """The bytes to send."""
        return self.data.replace(b"{key}", key.encode())


_Row = tuple[str, int, str, bytes]  # name, status, says, data
_KEY = {"x-api-key": "{key}", "content-type": "application/json"}


def tensor(**changes: Any) -> dict[str, Any]:
    """A valid input tensor, changed."""
    return {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0], **changes}


def body(*tensors: Mapping[str, Any], **more: Any) -> bytes:
    """A v2 request of those tensors."""
    return json.dumps({"inputs": list(tensors) or [tensor()], **more}).encode()


def abuses(model: str) -> tuple[Abuse, ...]:
    """All of them."""
    infer = f"/v2/models/{model}/infer"
    groups = {
        "the body": [*_json(infer), *_tensors(infer), *_kinds(infer)],
        "who, what and where": [*_access(infer, model), *_methods(infer)],
        "paths": [*_paths(model)],
        "the wire": [*_versions(), *_framing(infer), *_limits(infer)],
    }
    return tuple(
        Abuse(group=group, name=name, status=status, says=says, data=data)
        for group, rows in groups.items()
        for name, status, says, data in rows
    )


def _post(infer: str, content: bytes, **headers: str) -> bytes:
    return request("POST", infer, {**_KEY, **{name.replace("_", "-"): value for name, value in headers.items()}}, content)


def _json(infer: str) -> Iterator[_Row]:
    deep = b'{"inputs":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    for name, says, content in (
        ("no JSON", "JSON", b"{"),
        ("nothing", "JSON", b""),
        ("no UTF-8", "", b'{"inputs": "\xff\xfe"}'),
        ("NaN", "JSON", body().replace(b"1.0", b"NaN")),
        ("Infinity", "JSON", body().replace(b"1.0", b"-Infinity")),
        ("1e999", "", body().replace(b"1.0", b"1e999")),
        ("the same key twice", "", b'{"inputs": [], ' + body()[1:]),
        ("deep nesting", "", b"[" * 100_000),
        ("deep nesting that ends", "", deep),
        ("an array", "object", b"[]"),
        ("no inputs", "inputs", b"{}"),
        ("an id of half a megabyte", "id", body(id="x" * 500_000)),
    ):
        yield name, 400, says, _post(infer, content)


def _tensors(infer: str) -> Iterator[_Row]:
    for name, status, says, changes in (
        ("wrong name", 400, "expected input", {"name": "other"}),
        ("wrong datatype", 400, "FP32", {"datatype": "INT64"}),
        ("unknown datatype", 400, "FP32", {"datatype": "x" * 1000}),
        ("wrong shape", 400, "[1, 5]", {"shape": [1, 5], "data": [1.0] * 5}),
        ("wrong rank", 400, "", {"shape": [4]}),
        ("a hundred thousand dimensions", 400, "", {"shape": [1] * 100_000}),
        ("wrong number of elements", 400, "input", {"shape": [2, 4]}),
        ("negative dimension", 400, "input", {"shape": [-1, 4]}),
        ("overflowing dimension", 413, "rows", {"shape": [1 << 62, 4]}),
        ("overflowing product", 400, "input", {"shape": [1 << 40, 1 << 40]}),
        ("fractional dimension", 400, "input", {"shape": [1.0, 4]}),
        ("empty batch", 400, "empty", {"shape": [0, 4], "data": []}),
        ("batch too large", 413, "rows", {"shape": [5000, 4], "data": [0] * 20_000}),
        ("strings for numbers", 400, "string", {"data": ["1"] * 4}),
        ("booleans for numbers", 400, "boolean", {"data": [True] * 4}),
        ("nulls for numbers", 400, "null", {"data": [None] * 4}),
        ("out of the datatype's range", 400, "range", {"data": [1e39, 0, 0, 0]}),
        ("an output that is not finite", 500, "not finite", {"data": [2000.0, 0, 0, 0]}),
    ):
        yield name, status, says, _post(infer, body(tensor(**changes)))
    yield "the same tensor twice", 400, "twice", _post(infer, body(tensor(), tensor()))
    yield "unknown output", 400, "output", _post(infer, body(outputs=[{"name": "x"}]))


def _kinds(infer: str) -> Iterator[_Row]:
    size = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":99}}]}'
    length = "Inference-Header-Content-Length"
    yield "binary size past the end", 400, "binary_data_size", _post(infer, size, inference_header_content_length=str(len(size)))
    yield "binary header longer than the body", 400, length, _post(infer, body(), inference_header_content_length="999999")
    yield "binary header that is no number", 400, length, _post(infer, body(), inference_header_content_length="-1")
    yield "unsupported content type", 415, "content-type", _post(infer, body(), content_type="text/xml")
    yield "unsupported content encoding", 415, "content-encoding", _post(infer, b"\x1f\x8b", content_encoding="gzip")
    yield "an answer of a type that there is not", 406, "accept", _post(infer, body(), accept="image/png")


def _access(infer: str, model: str) -> Iterator[_Row]:
    yield "no API key", 401, "API key", request("POST", infer, {}, body())
    yield "a wrong API key", 401, "API key", request("POST", infer, {"x-api-key": "d3Jvbmc6d3Jvbmc"}, body())
    yield "unknown model", 404, "no such path or model", _post("/v2/models/absent/infer", body())
    yield "unknown version", 404, "Versions", _post(f"/v2/models/{model}/versions/99/infer", body())
    yield "unknown channel", 404, "unknown channel", _post(infer, body(), x_modelway_channel="nope")
    yield "unknown path", 404, "no such path", request("GET", "/admin", _KEY)


def _methods(infer: str) -> Iterator[_Row]:
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE"):
        yield f"{method} where POST is meant", 405, "Use POST", request(method, infer, _KEY)
    yield "CONNECT", 401, "", request("CONNECT", "127.0.0.1:22", _KEY)  # it has no route, so no key opens it
    yield "OPTIONS *", 404, "no such path", request("OPTIONS", "*", _KEY)
    yield "a method that is none", 400, "", request("DESCRIBED-BY", infer, _KEY)


def _paths(model: str) -> Iterator[_Row]:
    for name, status, path in (
        ("an encoded slash", 400, f"/v2%2fmodels/{model}/infer"),
        ("an encoded backslash", 400, f"/v2%5cmodels/{model}/infer"),
        ("a way up", 404, "/v2/models/../../models"),
        ("an encoded way up", 404, "/v2/models/%2e%2e/%2e%2e/models"),
        ("a doubly encoded way up", 404, "/v2/models/%252e%252e/models"),
        ("double slashes", 404, "//models"),
        ("an encoded NUL", 400, "/v2/models/%00/infer"),
        ("a NUL", 400, "/v2/mod\x00els"),
        ("absolute form", 404, "http://127.0.0.1:8081/models"),
        ("TorchServe's management", 404, "/models"),
        ("TorchServe's management, encoded", 404, "/%6dodels"),
        ("TorchServe's metrics", 404, "/metrics"),
        ("Envoy's admin", 404, "/config_dump"),
        ("an engine's own name", 404, f"/predictions/{model}/1-onnx-fp32-000000000000"),
        ("a worker's own path", 404, "/health"),
        ("a very long path", 404, "/" + "a" * 20_000),
    ):
        yield name, status, "", request("GET", path, _KEY)


def _versions() -> Iterator[_Row]:
    yield "no HTTP", 400, "", b"nonsense\r\n\r\n"
    yield "TLS to a plain port", 400, "", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)
    yield "HTTP/0.9", 426, "", b"GET /\r\n\r\n"
    yield "HTTP/3.7", 426, "", b"GET / HTTP/3.7\r\nhost: x\r\n\r\n"
    yield "no host", 400, "", b"POST /v2 HTTP/1.1\r\ncontent-length: 0\r\n\r\n"


def _head(infer: str) -> bytes:
    return f"POST {infer} HTTP/1.1\r\nhost: x\r\nx-api-key: {{key}}\r\n".encode()


def _framing(infer: str) -> Iterator[_Row]:
    for name, rest in (
        ("length and chunks", b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcde"),
        ("a negative length", b"content-length: -1\r\n\r\n"),
        ("a length with a sign", b"content-length: +4\r\n\r\nabcd"),
        ("a length past 64 bits", b"content-length: 99999999999999999999\r\n\r\n"),
        ("an obscured transfer encoding", b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("two transfer encodings", b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n"),
        ("a space before the colon", b"content-length : 4\r\n\r\nabcd"),
        ("a folded header", b"x-a: b\r\n c: d\r\ncontent-length: 0\r\n\r\n"),
        ("a bare line feed", b"x-a: b\nx-c: d\r\ncontent-length: 0\r\n\r\n"),
        ("a NUL in a header", b"x-a: \x00\r\ncontent-length: 0\r\n\r\n"),
        ("a chunk size that is none", b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n"),
    ):
        yield name, 400, "", _head(infer) + rest


def _limits(infer: str) -> Iterator[_Row]:
    head, size = _head(infer), LIMITS["max_body_bytes"]
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    yield "a body too large, said before", 413, "larger than 1 MiB", head + b"content-length: %d\r\n\r\n" % (1 << 30)
    yield (
        "a body too large, in chunks",
        413,
        "larger than 1 MiB",
        head + b"transfer-encoding: chunked\r\n\r\n" + chunk * (size // 65536 + 4),
    )
    yield "large headers", 431, "32 KiB", head + b"x-a: " + b"a" * 40_000 + b"\r\ncontent-length: 0\r\n\r\n"
    yield "many headers", 431, "", head + b"".join(b"x-%d: a\r\n" % i for i in range(300)) + b"content-length: 0\r\n\r\n"
    yield "half the headers", 408, "in time", head
    yield "half the body", 408, "in time", head + b"content-length: 100\r\n\r\n{"
