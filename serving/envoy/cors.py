"""Browsers of other origins: off unless origins are named. Pure rendering.

The filter is always there; without a policy on the virtual host it does nothing. It answers a browser's preflight and
marks what workers answer, but it does not see routes that Envoy answers by itself (metadata, 404): those are marked by
the virtual host, and preflights have a route of their own.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from registry.errors import UsageError
from serving.envoy.messages import header, typed

_FILTER = "envoy.filters.http.cors"
_REQUEST_HEADERS = "authorization, content-type, inference-header-content-length, x-api-key, x-modelway-channel, x-request-id"
_RESPONSE_HEADERS = "inference-header-content-length, retry-after, x-modelway-release, x-modelway-version, x-request-id"


def check_origin(origin: str) -> str:
    """Return `origin` if a browser can send it, or if it is `*`; else raise UsageError."""
    parts = urlsplit(origin)
    if origin == "*" or (parts.scheme in ("http", "https") and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}"):
        return origin
    raise UsageError(f"invalid CORS origin ({origin})", "Write scheme://host or scheme://host:port, or * for all.")


def cors_filter() -> dict[str, Any]:
    """The filter; in front of the one that asks for a key, as a preflight request has none."""
    return {"name": _FILTER, "typed_config": typed("filters.http.cors.v3.Cors")}


def cors_config(origins: Sequence[str]) -> dict[str, Any]:
    """`typed_per_filter_config` of the virtual host; empty without origins. Cookies are never allowed: keys are headers."""
    if not origins:
        return {}
    matches = [{"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin} for origin in origins]
    policy = typed(
        "filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=matches,
        allow_methods="GET, POST",
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_RESPONSE_HEADERS,
        max_age="600",
    )
    return {_FILTER: policy}


def preflight_routes(origins: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The first route of the virtual host: the filter answers it for origins that may ask; for others there is nothing behind it."""
    if origins:
        asks = ({"name": "origin", "present_match": True}, {"name": "access-control-request-method", "present_match": True})
        match = {"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "OPTIONS"}}, *asks]}
        yield {"match": match, "route": {"cluster": "none", "cluster_not_found_response_code": "NOT_FOUND"}}


def cors_response_headers(origins: Sequence[str]) -> list[dict[str, Any]]:
    """What the virtual host adds to its answers."""
    if not origins:
        return []
    sent = "request.headers['origin']"
    allowed = "true" if "*" in origins else f"{sent} in [{', '.join(repr(origin) for origin in origins)}]"
    may = f"'origin' in request.headers && {allowed}"
    return [
        header("access-control-allow-origin", f"%CEL({may} ? {sent} : '')%"),
        header("access-control-expose-headers", f"%CEL({may} ? '{_RESPONSE_HEADERS}' : '')%"),
        header("vary", "origin"),
    ]
