"""The route table as Envoy's route configuration: most specific first, one answer for every path. Pure rendering.

    POST /v2/models/digits/infer         channel by header, canary by a fraction -> /predictions/digits/3-onnx-fp32-0123456789ab
    POST /v2/models/digits/versions/3/infer                                      -> the same, whatever the channel
    GET  /v2/models/digits                                                       -> answered by Envoy itself
    PUT  /v2/models/digits/infer                                                 -> 405, Allow: POST
    PUT  /predictions/digits                                                     -> as POST; `curl -T` and TorchServe's callers send it
    anything else                                                                -> 404 that says what to do

Clients name models and versions; only Envoy names engine versions, so nothing but predictions is reachable behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.names import PRODUCTION
from serving.envoy import grpc, keys
from serving.envoy.bootstrap import ROUTES_NAME
from serving.envoy.clusters import cluster_name
from serving.envoy.config import EnvoyConfig
from serving.envoy.cors import cors_config, cors_response_headers, preflight_routes
from serving.envoy.messages import seconds, typed
from serving.routes import Backend, ChannelRoute, RouteTable

CHANNEL_HEADER = "x-modelway-channel"
PROTOCOL_HEADER = "x-modelway-protocol"
PLATFORM = "modelway"
_SERVER_VERSION = "2"

_JSON = {"header": {"key": "content-type", "value": "application/json"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}

# What TorchServe and Envoy say of themselves and no client needs.
_REMOVED_RESPONSE_HEADERS = ["pragma", "expires", "x-envoy-upstream-service-time", "x-envoy-overloaded", "x-envoy-attempt-count"]


# A request that reached no worker, or whose worker died over it, is asked again: a prediction changes nothing, so asking
# twice is safe. First of another worker; only then of TorchServe's listener, which for a moment hands requests to the
# worker that has just died. Two retries and no more, or a request that kills workers would kill them all.
_PREVIOUS_HOSTS = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
_PREVIOUS_PRIORITIES = "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
_RETRY_POLICY = {
    "retry_on": "connect-failure,reset",
    "num_retries": 2,
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {"@type": _PREVIOUS_PRIORITIES, "update_frequency": 2},
    },
    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": _PREVIOUS_HOSTS}}],
    "host_selection_retry_max_attempts": 20,  # they are drawn at random: with two nodes, one in a million misses
    "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One thing that a client can ask of a model: what it is called from outside, and how the worker is asked."""

    methods: tuple[str, ...]
    path: str  # with {m} for the model, and {v} for the version in `versioned`
    versioned: str
    protocol: str  # value of the protocol header; empty if Envoy answers by itself
    grpc: bool = False  # the answer is a protobuf message; grpc_request.lua leads here


_CALLS = (
    _Call(methods=("POST",), path="/v2/models/{m}/infer", versioned="/v2/models/{m}/versions/{v}/infer", protocol="v2-infer"),
    _Call(methods=("GET",), path="/v2/models/{m}/ready", versioned="/v2/models/{m}/versions/{v}/ready", protocol="v2-ready"),
    _Call(methods=("GET",), path="/v2/models/{m}", versioned="/v2/models/{m}/versions/{v}", protocol=""),
    _Call(methods=("POST",), path="/v1/models/{m}:predict", versioned="/v1/models/{m}/versions/{v}:predict", protocol="v1-predict"),
    _Call(methods=("GET",), path="/v1/models/{m}/metadata", versioned="/v1/models/{m}/versions/{v}/metadata", protocol=""),
    _Call(methods=("GET",), path="/v1/models/{m}", versioned="/v1/models/{m}/versions/{v}", protocol=""),
    _Call(methods=("POST", "PUT"), path="/predictions/{m}", versioned="/predictions/{m}/{v}", protocol="predictions"),
)
_GRPC_CALLS = (
    _Call(
        methods=("POST",),
        path="/v2/models/{m}/ready",
        versioned="/v2/models/{m}/versions/{v}/ready",
        protocol=grpc.READY_PROTOCOL,
        grpc=True,
    ),
    _Call(methods=("POST",), path="/v2/models/{m}/metadata", versioned="/v2/models/{m}/versions/{v}/metadata", protocol="", grpc=True),
)


def routes(table: RouteTable, config: EnvoyConfig) -> dict[str, Any]:
    """The discovery document of the one route configuration."""
    return {
        "version_info": table.digest,
        "resources": [
            {
                "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                "name": ROUTES_NAME,
                # What a worker may not tell of itself in our name; each route adds the true values again.
                "response_headers_to_remove": _REMOVED_RESPONSE_HEADERS,
                "most_specific_header_mutations_wins": True,
                "max_direct_response_body_size_bytes": 1 << 20,
                "virtual_hosts": [
                    {
                        "name": "gateway",
                        "domains": ["*"],
                        "retry_policy": _RETRY_POLICY,
                        "request_headers_to_remove": [keys.CREDENTIALS_HEADER],
                        "typed_per_filter_config": {**cors_config(config.cors_allow_origins), **keys.host_config(config.keys())},
                        "response_headers_to_add": cors_response_headers(config.cors_allow_origins),
                        "routes": [_too_large(config), *preflight_routes(config.cors_allow_origins), *_routes(table, config)],
                    },
                    {
                        "name": "grpc",
                        "domains": [grpc.VIRTUAL_HOST],
                        "retry_policy": _RETRY_POLICY,
                        "request_headers_to_remove": [keys.CREDENTIALS_HEADER],
                        "routes": list(_grpc_routes(table, config)),
                    },
                ],
            }
        ],
    }


def _routes(table: RouteTable, config: EnvoyConfig) -> Iterator[dict[str, Any]]:
    models = sorted({backend.model for backend in table.backends})
    for model in models:
        for call in _CALLS:
            yield from keys.guarded(_explicit_versions(model, call, table, config), model, config.keys())
            yield from keys.guarded(_channels(model, call, table, config), model, config.keys())
    yield from _server(table, config)
    yield from _grpc_entries(config)
    yield _text(
        {"prefix": "/"},
        404,
        f"no such path or model. {_known(models)} Ask POST /v2/models/MODEL/infer, /v1/models/MODEL:predict or /predictions/MODEL.",
    )


def _grpc_entries(config: EnvoyConfig) -> Iterator[dict[str, Any]]:
    open_paths = {f"/{grpc.SERVICE}/{method}" for method in grpc.OPEN_METHODS}
    for route in grpc.entry_routes(keys.WHEN_ROUTED if config.api_keys is not None else ()):
        yield from keys.unguarded([route], config.keys()) if route["match"].get("path") in open_paths else [route]


def _grpc_routes(table: RouteTable, config: EnvoyConfig) -> Iterator[dict[str, Any]]:
    """What gRPC asks besides inference, which has the routes of REST."""
    yield grpc.guard()
    yield grpc.answer({"path": "/ServerLive"}, grpc.server_live())
    yield grpc.answer({"path": "/ServerReady"}, grpc.server_ready(not _not_ready(table)))
    yield grpc.answer({"path": "/ServerMetadata"}, grpc.server_metadata(PLATFORM, _SERVER_VERSION))
    models = sorted({backend.model for backend in table.backends})
    for model in models:
        for call in _GRPC_CALLS:
            yield from keys.guarded(_explicit_versions(model, call, table, config), model, config.keys())
            yield from keys.guarded(_channels(model, call, table, config), model, config.keys())
    yield _text({"prefix": "/"}, 404, f"no such model. {_known(models)}")


def _known(models: list[str]) -> str:
    return f"Models: {', '.join(models)}." if models else "No model has a release yet: modelway promote MODEL/VERSION."


# --- the calls of one model


def _explicit_versions(model: str, call: _Call, table: RouteTable, config: EnvoyConfig) -> Iterator[dict[str, Any]]:
    versions = _backend_by_version(model, table)
    for version, backend in sorted(versions.items()):
        path = call.versioned.format(m=model, v=version)
        yield _to_backend({"path": path, "headers": [_method(call)]}, backend, call, table, config)
        yield _method_not_allowed(path, call)
    known = ", ".join(str(version) for version in sorted(versions))
    pattern = re.escape(call.versioned.format(m=model, v="VERSION")).replace("VERSION", "[^/:]+")
    yield _text({"safe_regex": {"regex": pattern}}, 404, f"no such version of {model} is served. Versions: {known}.")


def _backend_by_version(model: str, table: RouteTable) -> Mapping[int, Backend]:
    """The backend that answers for each registered version: the one live in production, else the newest release."""
    live = {route.live for route in table.channels if route.model == model and route.channel == PRODUCTION}
    chosen: dict[int, Backend] = {}
    for backend in sorted(table.backends, key=lambda b: (b.release_id in live, b.release_id)):
        if backend.model == model:
            chosen[backend.version] = backend
    return chosen


def _channels(model: str, call: _Call, table: RouteTable, config: EnvoyConfig) -> Iterator[dict[str, Any]]:
    path = call.path.format(m=model)
    channels = [route for route in table.channels if route.model == model]
    for route in channels:
        yield from _channel(route, [_channel_is(route.channel)], call, table, config)
    yield _method_not_allowed(path, call)
    known = (
        f"Channels of {model}: {', '.join(route.channel for route in channels)}." if channels else f"No channel of {model} has a release."
    )
    asked = {"name": CHANNEL_HEADER, "present_match": True}
    yield {
        "match": {"path": path, "headers": [asked]},
        "direct_response": {
            "status": 404,
            "body_format": {"text_format_source": {"inline_string": f"unknown channel (%REQ({CHANNEL_HEADER}):64%). {known}"}},
        },
    }
    for route in channels:
        if route.channel == PRODUCTION:
            yield from _channel(route, [], call, table, config)
    yield _text({"path": path}, 404, f"{model} has no {PRODUCTION} release. {known} Name one in the header {CHANNEL_HEADER}.")


def _channel(
    route: ChannelRoute, headers: list[dict[str, Any]], call: _Call, table: RouteTable, config: EnvoyConfig
) -> Iterator[dict[str, Any]]:
    backends = table.backends_by_release()
    match = {"path": call.path.format(m=route.model), "headers": [_method(call), *headers]}
    if route.candidate is not None and call.protocol:
        share = {"numerator": round(route.candidate_percent * 10_000), "denominator": "MILLION"}
        yield _to_backend({**match, "runtime_fraction": {"default_value": share}}, backends[route.candidate], call, table, config)
    yield _to_backend(match, backends[route.live], call, table, config)


def _method(call: _Call) -> dict[str, Any]:
    if len(call.methods) == 1:
        return {"name": ":method", "string_match": {"exact": call.methods[0]}}
    return {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(call.methods)}}}


def _channel_is(channel: str) -> dict[str, Any]:
    return {"name": CHANNEL_HEADER, "string_match": {"exact": channel}}


def _to_backend(match: dict[str, Any], backend: Backend, call: _Call, table: RouteTable, config: EnvoyConfig) -> dict[str, Any]:
    headers = [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in (("x-modelway-version", str(backend.version)), ("x-modelway-release", str(backend.release_id)))
    ]
    if not call.protocol and call.grpc:
        versions = tuple(map(str, sorted(_backend_by_version(backend.model, table))))
        message = grpc.model_metadata(backend.model, versions, PLATFORM, backend.signature)
        return {**grpc.answer(match, message), "response_headers_to_add": headers}
    if not call.protocol:
        answer = _metadata(call, backend, table)
        return _direct(match, 200, json.dumps(answer, separators=(",", ":")), headers=[_JSON, *headers])
    return {
        "name": cluster_name(backend.release_id),
        "match": match,
        "route": {
            "cluster": cluster_name(backend.release_id),
            "regex_rewrite": {
                "pattern": {"regex": "^[^?]*"},
                "substitution": f"/predictions/{backend.model}/{backend.engine_version}",
            },
            "timeout": seconds(config.request_timeout_s),
        },
        "request_headers_to_add": [
            # What is there already is grpc_request.lua's; a client's own is taken away before (bootstrap.py).
            {"header": {"key": PROTOCOL_HEADER, "value": call.protocol}, "append_action": "ADD_IF_ABSENT"},
        ],
        "response_headers_to_add": headers,
    }


def _metadata(call: _Call, backend: Backend, table: RouteTable) -> dict[str, Any]:
    """What Envoy answers by itself, in the words of the protocol of the path."""
    signature = backend.signature.to_json()
    versions = sorted(_backend_by_version(backend.model, table))
    if call.path.startswith("/v2"):  # https://github.com/kserve/open-inference-protocol, Model Metadata Response
        return {"name": backend.model, "versions": [str(v) for v in versions], "platform": PLATFORM, **signature}
    if call.path.endswith("/metadata"):  # https://www.tensorflow.org/tfx/serving/api_rest#model_metadata_api
        spec = {"name": backend.model, "signature_name": "serving_default", "version": str(backend.version)}
        return {"model_spec": spec, "metadata": signature}
    status = {"error_code": "OK", "error_message": ""}  # https://www.tensorflow.org/tfx/serving/api_rest#model_status_api
    # `name` and `ready` are KServe's words for the same path.
    return {
        "name": backend.model,
        "ready": True,
        "model_version_status": [{"version": str(backend.version), "state": "AVAILABLE", "status": status}],
    }


def _method_not_allowed(path: str, call: _Call) -> dict[str, Any]:
    match = {"path": path, "headers": [{**_method(call), "invert_match": True}]}
    allow = {"header": {"key": "allow", "value": ", ".join(call.methods)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return _direct(match, 405, f"method not allowed. Use {' or '.join(call.methods)}.", headers=[allow])


# --- the server itself


def _server(table: RouteTable, config: EnvoyConfig) -> Iterator[dict[str, Any]]:
    server = {"name": PLATFORM, "version": _SERVER_VERSION, "extensions": ["binary_tensor_data"]}
    yield from _get("/v2", 200, server)
    # Load balancers have no key, so health needs none; and then it names no model.
    problem = _not_ready(table)
    if problem and config.keys() is not None:
        problem = "not every channel is served"
    yield from keys.unguarded(_get("/v2/health/live", 200, {"live": True}), config.keys())
    yield from keys.unguarded(_get("/v2/health/ready", 503 if problem else 200, problem or {"ready": True}), config.keys())
    yield from keys.unguarded(_get("/ping", 503 if problem else 200, problem or {"status": "Healthy"}), config.keys())


def _not_ready(table: RouteTable) -> str:
    if not table.channels:
        return "no channel has a release yet. modelway promote MODEL/VERSION"
    backends = table.backends_by_release()
    missing = [f"{route.model}@{route.channel}" for route in table.channels if not backends[route.live].sockets]
    return f"no node serves {', '.join(missing)}" if missing else ""


def _too_large(config: EnvoyConfig) -> dict[str, Any]:
    """Who says before that a body is too large is told so at once; the others when they have sent too much (bootstrap.py)."""
    too_large = {"name": "content-length", "range_match": {"start": config.max_body_bytes + 1, "end": (1 << 63) - 1}}
    unread = typed("filters.http.buffer.v3.BufferPerRoute", disabled=True)
    refusal = _text({"prefix": "/", "headers": [too_large]}, 413, "too large")
    return {**refusal, "typed_per_filter_config": {"envoy.filters.http.buffer": unread}}


def _get(path: str, status: int, answer: Mapping[str, Any] | str) -> Iterator[dict[str, Any]]:
    call = _Call(methods=("GET",), path=path, versioned=path, protocol="")
    match = {"path": path, "headers": [_method(call)]}
    if isinstance(answer, str):
        yield _text(match, status, answer)
    else:
        yield _direct(match, status, json.dumps(answer, separators=(",", ":")), headers=[_JSON])
    yield _method_not_allowed(path, call)


def _text(match: dict[str, Any], status: int, text: str) -> dict[str, Any]:
    return _direct(match, status, text, headers=[])


def _direct(match: dict[str, Any], status: int, body: str, *, headers: list[dict[str, Any]]) -> dict[str, Any]:
    """An answer of Envoy itself; from 400 on the text becomes `{"error": text}` (bootstrap.py)."""
    response: dict[str, Any] = {"status": status, "body": {"inline_string": body}}
    return {"match": match, "direct_response": response, **({"response_headers_to_add": headers} if headers else {})}
