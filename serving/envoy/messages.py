"""Envoy's configuration messages in JSON: the few forms that every document of ours uses.

Field meanings: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
"""

from __future__ import annotations

from typing import Any

_TYPE = "type.googleapis.com/envoy.extensions"


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """A typed_config of one of Envoy's extensions."""
    return {"@type": f"{_TYPE}.{name}", **fields}


def seconds(value: float) -> str:
    """A protobuf duration in JSON."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def set_header(key: str, value: str) -> dict[str, Any]:
    """A mutation that sets a header; an empty value sets nothing."""
    return {"append": header(key, value)}


def header(key: str, value: str) -> dict[str, Any]:
    """A header that replaces the ones of that name."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
