"""The answers that Envoy itself gives: from 400 on always `{"error": ...}`, each with what to do next. Pure rendering."""

from __future__ import annotations

from typing import Any

from serving.envoy import grpc
from serving.envoy.config import EnvoyConfig
from serving.envoy.messages import header

_RETRY_AFTER = header("retry-after", "1")
_NO_PATH = {"header_filter": {"header": {"name": ":path", "string_match": {"prefix": "/"}, "invert_match": True}}}
_CHALLENGE = header("www-authenticate", 'Bearer realm="modelway"')


def local_replies(config: EnvoyConfig) -> dict[str, Any]:
    """The `local_reply_config`. The first that matches counts; metadata answers (200) stay as they are."""
    limit = f"{config.max_body_bytes / (1 << 20):g} MiB"
    slow = f"the model did not answer within {config.request_timeout_s:g} s; send a smaller batch or ask again later"
    mappers = [
        _mapper(_flag("UT"), slow),
        _mapper(_flag("UO"), "the model has too many requests in flight; ask again later", _RETRY_AFTER),
        _mapper(_flag("UH", "UF", "UC", "UR", "LR", "NC"), "no worker of the model answers; ask again later", _RETRY_AFTER),
        _mapper(_flag("OM"), "the gateway is short of memory; ask again later", _RETRY_AFTER),
        _mapper(_status("EQ", 429), "this API key has used up its requests per second; ask again later", _RETRY_AFTER),
        _mapper(_status("EQ", 401), "an API key is needed and none that is known was sent; send it in the header x-api-key", _CHALLENGE),
        _mapper(_status("EQ", 403), "this API key may not ask this model; ask the operator for one that may"),
        _mapper(_status("EQ", 413), f"the request body is larger than {limit}; send a smaller batch"),
        _mapper(_status("EQ", 431), f"the request headers are larger than {config.max_header_kib} KiB; send fewer or smaller ones"),
        _mapper(_status("EQ", 408), "the request did not arrive in time; send it again"),
        _mapper(_status("GE", 400), "%LOCAL_REPLY_BODY%"),
    ]
    # What Envoy has no text for. The first is the preflight of an origin that may not ask (cors.py).
    wordless = [
        _mapper(
            {"and_filter": {"filters": [_flag("NC"), _status("EQ", 404)]}},
            "pages of this origin may not call this gateway; ask the operator to allow it",
        ),
        _mapper(_flag("NR"), "no such path"),
        _mapper({"and_filter": {"filters": [_NO_PATH, _status("EQ", 404)]}}, "no such path"),  # OPTIONS *
        _mapper(_status("EQ", 400), "not a well-formed request, or a path with two meanings (%RESPONSE_CODE_DETAILS%); send plain HTTP"),
        # The client's mistake, and so no 5xx.
        {**_mapper(_status("EQ", 501), "unsupported transfer-encoding; send a content-length, or chunks"), "status_code": 400},
    ]
    return {"mappers": [*grpc.replies(mappers), *wordless, *mappers]}


def _mapper(match: dict[str, Any], text: str, *headers: dict[str, Any]) -> dict[str, Any]:
    return {
        "filter": match,
        "body_format_override": {"json_format": {"error": text}, "content_type": "application/json"},
        **({"headers_to_add": list(headers)} if headers else {}),
    }


def _flag(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(comparison: str, status: int) -> dict[str, Any]:
    # The runtime key is required and never set: the default value is the one that counts.
    value = {"default_value": status, "runtime_key": f"modelway.local_reply.{status}"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}
