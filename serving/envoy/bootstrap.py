"""What Envoy is started with: listener, limits, admin socket, statistics. Pure rendering; routes and clusters come from files.

Field meanings: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
"""

from __future__ import annotations

from typing import Any

from serving.envoy.config import EnvoyConfig

ROUTES_NAME = "modelway"
STAT_PREFIX = "gateway"

# Envoy counts whole milliseconds, rounded down, and a bucket holds what lies below its bound: so "2" reads "less than
# 2 ms" exactly. Finer bounds than 1 ms would tell nothing. Each is an edge of Envoy's own log-linear bins.
LATENCY_BOUNDS_MS = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 57, 68, 80, 95),
    *(110, 130, 160, 190, 230, 270, 320, 380, 450, 540, 640, 760, 900, 1100, 1300, 1600, 1900, 2300, 2700),
    *(3200, 3800, 4500, 5400, 6400, 7600, 9000, 11000, 13000, 16000, 19000, 23000, 27000, 32000, 38000, 45000, 54000, 60000),
)

# What a client may send as x-request-id; anything else is replaced by a fresh one.
REQUEST_ID_PATTERN = "^[A-Za-z0-9._:-]+$"
MAX_REQUEST_ID_CHARS = 128
_VALID_REQUEST_ID = "x-modelway-valid-request-id"

_TYPE = "type.googleapis.com/envoy.extensions"


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """A typed_config of one of Envoy's extensions."""
    return {"@type": f"{_TYPE}.{name}", **fields}


def seconds(value: float) -> str:
    """A protobuf duration in JSON."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def bootstrap(config: EnvoyConfig) -> dict[str, Any]:
    """The bootstrap document."""
    return {
        "node": {"id": "modelway", "cluster": "modelway"},
        "admin": {"address": {"pipe": {"path": str(config.admin_socket), "mode": 0o600}}},
        # Statistics are merged when asked for, and only then: reading is then current, and two reads in a row prove
        # that every worker thread passed a point in time (see gateway.py).
        "stats_flush_on_admin": True,
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"suffix": "upstream_rq_time"}, "buckets": [float(bound) for bound in LATENCY_BOUNDS_MS]},
            ],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": typed(
                        "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        max_active_downstream_connections=config.max_connections,
                    ),
                }
            ]
        },
        "dynamic_resources": {"cds_config": _file(config, "clusters")},
        "static_resources": {"listeners": [_listener(config)]},
    }


def _file(config: EnvoyConfig, kind: str) -> dict[str, Any]:
    path = {"clusters": config.clusters_file, "routes": config.routes_file}[kind]
    return {
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
        "resource_api_version": "V3",
    }


def _listener(config: EnvoyConfig) -> dict[str, Any]:
    return {
        "name": "gateway",
        "address": {"socket_address": {"address": config.host, "port_value": config.port}},
        # With SO_REUSEPORT a second gateway on the same port would start, and quietly take half of the clients.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": _http(config)}]}],
    }


def _http(config: EnvoyConfig) -> dict[str, Any]:
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=STAT_PREFIX,
        codec_type="HTTP1",
        rds={"route_config_name": ROUTES_NAME, "config_source": _file(config, "routes")},
        server_name="modelway",
        # Nobody is trusted with Envoy's own x-envoy-* headers, this machine included.
        use_remote_address=True,
        internal_address_config={"unix_sockets": False, "cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        # One meaning per path, the same for us and for TorchServe: whatever could be read in two ways is refused.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        common_http_protocol_options={
            "idle_timeout": seconds(config.idle_timeout_s),
            "max_headers_count": 100,
            "headers_with_underscores_action": "DROP_HEADER",
        },
        max_request_headers_kb=config.max_header_kib,
        request_headers_timeout=seconds(config.header_timeout_s),
        request_timeout=seconds(config.receive_timeout_s),
        stream_idle_timeout=seconds(max(config.receive_timeout_s, config.request_timeout_s) + 5),
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension={"typed_config": typed("request_id.uuid.v3.UuidRequestIdConfig", pack_trace_reason=False)},
        early_header_mutation_extensions=[_early_mutation()],
        access_log=[_access_log(config)],
        local_reply_config=_local_replies(config),
        http_filters=[
            {
                # A whole request is held here before a worker sees it: a slow client never occupies one.
                "name": "envoy.filters.http.buffer",
                "typed_config": typed("filters.http.buffer.v3.Buffer", max_request_bytes=config.max_body_bytes),
            },
            {"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")},
        ],
    )


def _early_mutation() -> dict[str, Any]:
    sent = "request.headers['x-request-id']"
    valid = f"'x-request-id' in request.headers && size({sent}) <= {MAX_REQUEST_ID_CHARS} && {sent}.matches('{REQUEST_ID_PATTERN}')"
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": typed(
            "http.early_header_mutation.header_mutation.v3.HeaderMutation",
            # In order. An empty value is not written, so a valid id survives the detour and nothing else does.
            mutations=[
                {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
                {"remove": "authorization"},
                {"remove": "x-modelway-protocol"},
                {"remove": _VALID_REQUEST_ID},
                _set(_VALID_REQUEST_ID, f"%CEL({valid} ? {sent} : '')%"),
                {"remove": "x-request-id"},
                _set("x-request-id", f"%REQ({_VALID_REQUEST_ID})%"),
                {"remove": _VALID_REQUEST_ID},
            ],
        ),
    }


def _set(key: str, value: str) -> dict[str, Any]:
    return {"append": {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _access_log(config: EnvoyConfig) -> dict[str, Any]:
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
                    "channel": "%REQ(X-MODELWAY-CHANNEL):64%",
                    "cluster": "%UPSTREAM_CLUSTER%",
                    "release": "%RESP(X-MODELWAY-RELEASE)%",
                    "version": "%RESP(X-MODELWAY-VERSION)%",
                    "status": "%RESPONSE_CODE%",
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


def _local_replies(config: EnvoyConfig) -> dict[str, Any]:
    """Every answer from 400 on that Envoy itself gives becomes `{"error": ...}`; metadata answers stay as they are."""
    limit = f"{config.max_body_bytes / (1 << 20):g} MiB"
    return {
        "mappers": [
            _mapper(
                _flag("UT"), f"the model did not answer within {config.request_timeout_s:g} s; send a smaller batch or ask again later"
            ),
            _mapper(_flag("UO"), "the model has too many requests in flight; ask again later", retry_after=True),
            _mapper(_flag("UH", "UF", "UC", "UR", "LR", "NC"), "no worker of the model answers; ask again later", retry_after=True),
            _mapper(_status("EQ", 413), f"the request body is larger than {limit}; send a smaller batch"),
            _mapper(_status("EQ", 431), f"the request headers are larger than {config.max_header_kib} KiB; send fewer or smaller ones"),
            _mapper(_status("EQ", 408), "the request did not arrive in time; send it again"),
            _mapper(_status("GE", 400), "%LOCAL_REPLY_BODY%"),
        ]
    }


def _mapper(match: dict[str, Any], text: str, *, retry_after: bool = False) -> dict[str, Any]:
    header = {"header": {"key": "retry-after", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {
        "filter": match,
        "body_format_override": {"json_format": {"error": text}, "content_type": "application/json"},
        **({"headers_to_add": [header]} if retry_after else {}),
    }


def _flag(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(comparison: str, status: int) -> dict[str, Any]:
    # The runtime key is required and never set: the default value is the one that counts.
    value = {"default_value": status, "runtime_key": f"modelway.local_reply.{status}"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}
