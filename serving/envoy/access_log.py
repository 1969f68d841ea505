"""The access log: one JSON object per request, and a file that does not fill the disk.

Never in it: bodies, query strings, keys, any header of the client but its request id and channel.
"""

from __future__ import annotations

from typing import Any

from registry.errors import Unavailable
from serving.envoy.admin import Admin
from serving.envoy.config import EnvoyConfig
from serving.envoy.grpc import MARK
from serving.envoy.keys import NAME_HEADER
from serving.envoy.messages import typed


def access_logs(config: EnvoyConfig) -> list[dict[str, Any]]:
    """What Envoy does at the end of each request: a line, and where there are keys a count by key and status."""
    return [_lines(config), *([_counters()] if config.api_keys is not None else [])]


def _lines(config: EnvoyConfig) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": typed(
            "access_loggers.file.v3.FileAccessLog",
            path=str(config.access_log),
            log_format={
                "json_format": {
                    "time": "%START_TIME%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                    "method": "%REQ(:METHOD)%",
                    "path": "%PATH(NQ:ORIG_OR_PATH):512%",
                    "key": f"%REQ({NAME_HEADER})%",
                    "channel": "%REQ(X-MODELWAY-CHANNEL):64%",
                    "cluster": "%UPSTREAM_CLUSTER%",
                    "release": "%RESP(X-MODELWAY-RELEASE)%",
                    "version": "%RESP(X-MODELWAY-VERSION)%",
                    "status": "%RESPONSE_CODE%",
                    "grpc": f"%REQ({MARK})%",
                    "grpc_status": "%GRPC_STATUS_NUMBER%",
                    "flags": "%RESPONSE_FLAGS%",
                    "detail": "%RESPONSE_CODE_DETAILS%",
                    "duration_ms": "%DURATION%",
                    "received_bytes": "%BYTES_RECEIVED%",
                    "sent_bytes": "%BYTES_SENT%",
                    "upstream": "%UPSTREAM_HOST%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                }
            },
        ),
    }


def _counters() -> dict[str, Any]:
    tags = [{"name": "key", "value_format": f"%REQ({NAME_HEADER})%"}, {"name": "status", "value_format": "%RESPONSE_CODE%"}]
    return {
        "name": "envoy.access_loggers.stats",
        "typed_config": typed(
            "access_loggers.stats.v3.Config",
            stat_prefix="modelway",
            counters=[{"stat": {"name": "requests_by_key", "tags": tags}, "value_fixed": 1}],
        ),
    }


def rotate_access_log(config: EnvoyConfig) -> bool:
    """Move a log that has grown past its limit to `<log>.1`, replacing the one that is there, and let Envoy open a new one.

    Envoy writes by descriptor, so no line is lost: lines go to the old file until it opens the new one.

    Returns:
        Whether it was moved.

    Raises:
        Unavailable: If Envoy does not answer; it opens the new file when it starts again.
    """
    log = config.access_log
    try:
        if log.stat().st_size <= config.access_log_max_bytes:
            return False
        log.replace(log.with_name(f"{log.name}.1"))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Unavailable(f"cannot rotate the access log ({log}: {error.strerror})", "Make its directory writable.") from error
    Admin(config).post("/reopen_logs")
    return True
