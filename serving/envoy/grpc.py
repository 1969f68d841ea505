"""gRPC on the gateway's own port: `inference.GRPCInferenceService`, bridged to the HTTP that routes and workers speak. Pure rendering.

    client ──HTTP/2──> grpc_request.lua ──> reverse bridge ──> grpc_response.lua ──> router ──HTTP/1.1──> worker
                       names the route      takes the frame off, puts it back on                          decoder v2-grpc

A ModelInfer becomes a request for the path that a REST client would ask, so channels, canaries and versions are decided by
the same routes. The three filters are made only for the paths of the service: other requests do not meet them.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/grpc_http1_reverse_bridge_filter
docs/adr/0005-grpc-by-reverse-bridge.md says what else was weighed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.signature import Signature, TensorSpec
from serving.envoy.config import EnvoyConfig
from serving.envoy.messages import header, typed
from serving.runtime.modelway_runtime.wire import field, flag, integers

SERVICE = "inference.GRPCInferenceService"
OPEN_METHODS = ("ServerLive", "ServerReady")  # like /v2/health/*: they say nothing that needs a key
METHODS = (*OPEN_METHODS, "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
READY_PROTOCOL = "v2-grpc-ready"  # grpc_request.lua names that of ModelInfer, which has the routes of REST
MESSAGE = "application/x-protobuf"

# Where grpc_request.lua sends what is no inference, and the header that it sets. No client gets there: `guard` wants the
# header, and a client's own is taken away before anything is routed.
VIRTUAL_HOST = "grpc.modelway"
MARK = "x-modelway-grpc"

_REQUEST, _BRIDGE, _RESPONSE = "modelway.grpc_request", "modelway.grpc_bridge", "modelway.grpc_response"
_BUFFER = "envoy.filters.http.buffer"
_FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
_CONTENT_TYPE = {"name": "content-type", "string_match": {"safe_regex": {"regex": r"application/grpc(\+.*)?"}}}
# Before and behind the bridge, which changes the content type.
_IS_GRPC = {
    "or_filter": {"filters": [{"header_filter": {"header": found}} for found in ({"name": MARK, "present_match": True}, _CONTENT_TYPE)]}
}
_DIRECTORY = Path(__file__).parent
_NOTED = "modelway.grpc"  # dynamic metadata that grpc_response.lua sets

# What a caller may do about an HTTP status -> the gRPC status that says the same.
# https://grpc.github.io/grpc/core/md_doc_statuscodes.html
GRPC_STATUS: Mapping[int, int] = {
    400: 3,  # INVALID_ARGUMENT
    401: 16,  # UNAUTHENTICATED
    403: 7,  # PERMISSION_DENIED
    404: 5,  # NOT_FOUND
    405: 12,  # UNIMPLEMENTED
    406: 3,
    408: 4,  # DEADLINE_EXCEEDED
    413: 8,  # RESOURCE_EXHAUSTED
    415: 3,
    422: 3,
    429: 8,
    431: 8,
    500: 13,  # INTERNAL
    501: 12,
    502: 14,  # UNAVAILABLE
    503: 14,
    504: 4,
}
# Envoy's response flags -> the HTTP status that it gives with them.
_FLAG_STATUS: Mapping[str, int] = {
    "UT": 504,
    "RL": 429,
    **dict.fromkeys(("UO", "UH", "UF", "UC", "UR", "LR", "NC", "OM"), 503),
}


# --- filters


def http_filters(config: EnvoyConfig, when_routed: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The filters in their order, off unless a route turns them on (`entry_routes`).

    Args:
        when_routed: Filters to run as soon as the model is known; off in the same way.
    """
    bridge = {"content_type": MESSAGE, "withhold_grpc_frames": True}
    longest = f"local MAX_TIMEOUT_MS = {round(config.request_timeout_s * 1000)}\n"
    statuses = ", ".join(f'["{http}"] = "{grpc}"' for http, grpc in GRPC_STATUS.items())
    return [
        _filter(_REQUEST, "lua.v3.Lua", **_script("grpc_request.lua", longest)),
        *when_routed,
        _filter(_BRIDGE, "grpc_http1_reverse_bridge.v3.FilterConfig", **bridge),
        _filter(_RESPONSE, "lua.v3.Lua", **_script("grpc_response.lua", f"local GRPC_STATUS = {{ {statuses} }}\n")),
    ]


def _filter(name: str, message: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "disabled": True, "typed_config": typed(f"filters.http.{message}", **fields)}


def _script(name: str, before: str) -> dict[str, Any]:
    return {"default_source_code": {"inline_string": before + (_DIRECTORY / name).read_text()}}


# --- routes


def entry_routes(when_routed: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Routes of the public virtual host: the service's methods go through the filters, the rest is refused.

    Args:
        when_routed: Names of the filters that `http_filters` was given.
    """
    filters = {name: {"@type": _FILTER_CONFIG, "config": {}} for name in (_REQUEST, *when_routed, _BRIDGE, _RESPONSE)}
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    for method in METHODS:
        path = f"/{SERVICE}/{method}"
        # The filters choose another route. This answer is what remains if they fail.
        failed = _direct({"path": path, "headers": [post, _CONTENT_TYPE]}, 500, "the gateway failed on this request")
        yield {**failed, "typed_per_filter_config": filters}
        not_post = _direct({"path": path, "headers": [{**post, "invert_match": True}]}, 405, "method not allowed. Use POST.")
        yield {**not_post, "response_headers_to_add": [header("allow", "POST")]}
        yield _direct({"path": path}, 415, "expected the content-type application/grpc")
    for match in ({"prefix": f"/{SERVICE}/"}, {"prefix": "/", "headers": [_CONTENT_TYPE]}):
        # A stream that never ends must not be waited for: it is refused by its headers.
        unbuffered = {_BUFFER: typed("filters.http.buffer.v3.BufferPerRoute", disabled=True)}
        refused = _direct(match, 501, f"no such gRPC method. {SERVICE} has {', '.join(METHODS)}.")
        yield {**refused, "typed_per_filter_config": unbuffered}


def guard() -> dict[str, Any]:
    """The first route of the virtual host behind the filters: who was not sent by grpc_request.lua goes no further."""
    return _direct({"prefix": "/", "headers": [{"name": MARK, "present_match": True, "invert_match": True}]}, 404, "no such path.")


def answer(match: Mapping[str, Any], message: bytes) -> dict[str, Any]:
    """A route that the gateway answers by itself with a protobuf message."""
    # Envoy makes a gRPC error of every reply of its own; grpc_response.lua makes a message of this one.
    metadata = {"filter_metadata": {_RESPONSE: {"answer": message.hex()}}}
    return {"match": dict(match), "direct_response": {"status": 200}, "metadata": metadata}


def _direct(match: Mapping[str, Any], status: int, text: str) -> dict[str, Any]:
    return {"match": dict(match), "direct_response": {"status": status, "body": {"inline_string": text}}}


# --- messages that the gateway answers with; field numbers are those of the .proto


def server_live() -> bytes:
    """ServerLiveResponse."""
    return flag(1, True)


def server_ready(ready: bool) -> bytes:
    """ServerReadyResponse."""
    return flag(1, ready)


def server_metadata(name: str, version: str) -> bytes:
    """ServerMetadataResponse, with no extensions."""
    return field(1, name) + field(2, version)


def model_metadata(name: str, versions: Sequence[str], platform: str, signature: Signature) -> bytes:
    """ModelMetadataResponse."""
    inputs = (field(4, _tensor(spec)) for spec in signature.inputs)
    outputs = (field(5, _tensor(spec)) for spec in signature.outputs)
    return b"".join([field(1, name), *(field(2, version) for version in versions), field(3, platform), *inputs, *outputs])


def _tensor(spec: TensorSpec) -> bytes:
    return field(1, spec.name) + field(2, spec.datatype) + integers(3, spec.shape)


# --- replies of Envoy itself


def replies(mappers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mappers in front of those for HTTP: the same texts as grpc-message, and gRPC's statuses, for replies to gRPC requests."""
    return [_noted(), *(twin for mapper in mappers for twin in _twins(mapper))]


def _twins(mapper: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    found: Mapping[str, Any] = mapper["filter"]
    text = str(mapper["body_format_override"]["json_format"]["error"])
    statuses = _statuses(found)
    if statuses == {504}:
        text = "the model did not answer before the deadline; send a smaller batch or allow more time"
    for status in sorted(statuses):
        # Each status of a mapper of several has a twin of its own, which says what gRPC calls it.
        exact = found if len(statuses) == 1 else {"status_code_filter": _equals(status)}
        yield {
            "filter": {"and_filter": {"filters": [dict(exact), _IS_GRPC]}},
            "body_format_override": {"text_format_source": {"inline_string": text}, "content_type": "text/plain"},
            "headers_to_add": [header("grpc-status", str(GRPC_STATUS[status])), *mapper.get("headers_to_add", ())],
        }


def _statuses(found: Mapping[str, Any]) -> set[int]:
    """The HTTP statuses that a mapper's filter lets through."""
    if "response_flag_filter" in found:
        return {_FLAG_STATUS[flag] for flag in found["response_flag_filter"]["flags"]}
    if "and_filter" in found:
        return set.intersection(*(_statuses(part) for part in found["and_filter"]["filters"] if "response_flag_filter" not in part))
    comparison: Mapping[str, Any] = found["status_code_filter"]["comparison"]
    bound: int = comparison["value"]["default_value"]
    return {bound} if comparison["op"] == "EQ" else {status for status in GRPC_STATUS if status >= bound}


def _equals(status: int) -> dict[str, Any]:
    return {"comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": f"modelway.local_reply.{status}"}}}


def _noted() -> dict[str, Any]:
    """The mapper of the bridge's own replies: each stands for an error that grpc_response.lua noted."""
    matcher = {"filter": _NOTED, "path": [{"key": "status"}], "value": {"present_match": True}}
    text = f"%DYNAMIC_METADATA({_NOTED}:message)%"
    kept = ("x-modelway-version", "x-modelway-release", "retry-after")
    return {
        "filter": {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}},
        "body_format_override": {"text_format_source": {"inline_string": text}, "content_type": "text/plain"},
        "headers_to_add": [
            header("grpc-status", f"%DYNAMIC_METADATA({_NOTED}:status)%"),
            *(header(name, f"%DYNAMIC_METADATA({_NOTED}:{name})%") for name in kept),
        ],
    }
