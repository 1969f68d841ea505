"""What Envoy is started with: listener, limits, admin socket, statistics. Pure rendering; routes and clusters come from files.

Field meanings: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
"""

from __future__ import annotations

from typing import Any

from serving.envoy import grpc, keys, tls
from serving.envoy.access_log import access_logs
from serving.envoy.config import EnvoyConfig
from serving.envoy.cors import cors_filter
from serving.envoy.local_replies import local_replies
from serving.envoy.messages import seconds, set_header, typed

__all__ = ["LATENCY_BOUNDS_MS", "ROUTES_NAME", "STAT_PREFIX", "bootstrap", "seconds", "typed"]

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
        "overload_manager": _overload(config),
        "dynamic_resources": {"cds_config": _file(config, "clusters")},
        "static_resources": {"listeners": [_listener(config)]},
    }


def _overload(config: EnvoyConfig) -> dict[str, Any]:
    """Connections are counted, and so is memory: bodies are held here whole, and many large ones at once could fill a machine.

    Near the limit Envoy gives free memory back and refuses new requests (503); past it the streams that hold most go first.
    """
    heap = "envoy.resource_monitors.fixed_heap"
    return {
        "refresh_interval": "0.05s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},  # needed to tell which streams hold most
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": typed(
                    "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=config.max_connections,
                ),
            },
            {
                "name": heap,
                "typed_config": typed("resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=config.max_memory_mib << 20),
            },
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": [{"name": heap, "threshold": {"value": 0.85}}]},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [{"name": heap, "threshold": {"value": 0.9}}]},
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.95, "saturation_threshold": 1.0}}],
            },
        ],
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
        "filter_chains": [
            {
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": _http(config)}],
                **({"transport_socket": tls.transport_socket(config.tls_file)} if config.tls else {}),
                "transport_socket_connect_timeout": seconds(config.header_timeout_s),  # of the TLS handshake
            }
        ],
    }


def _http(config: EnvoyConfig) -> dict[str, Any]:
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=STAT_PREFIX,
        codec_type="AUTO",  # HTTP/1.1 and HTTP/2, by ALPN with TLS, by its first bytes without
        http2_protocol_options={
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 4 << 20,
        },
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
        early_header_mutation_extensions=[_early_mutation(config)],
        access_log=access_logs(config),
        local_reply_config=local_replies(config),
        http_filters=[
            cors_filter(),
            *(keys.filters() if config.api_keys is not None else []),
            {
                # A whole request is held here before a worker sees it: a slow client never occupies one.
                "name": "envoy.filters.http.buffer",
                "typed_config": typed("filters.http.buffer.v3.Buffer", max_request_bytes=config.max_body_bytes),
            },
            *grpc.http_filters(config, keys.filters_when_routed() if config.api_keys is not None else []),
            {"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")},
        ],
    )


def _early_mutation(config: EnvoyConfig) -> dict[str, Any]:
    sent = "request.headers['x-request-id']"
    valid = f"'x-request-id' in request.headers && size({sent}) <= {MAX_REQUEST_ID_CHARS} && {sent}.matches('{REQUEST_ID_PATTERN}')"
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": typed(
            "http.early_header_mutation.header_mutation.v3.HeaderMutation",
            # In order. An empty value is not written, so a valid id survives the detour and nothing else does.
            mutations=[
                {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
                *keys.early_mutations(enforced=config.api_keys is not None),
                {"remove": "x-modelway-protocol"},
                {"remove": grpc.MARK},
                {"remove": _VALID_REQUEST_ID},
                set_header(_VALID_REQUEST_ID, f"%CEL({valid} ? {sent} : '')%"),
                {"remove": "x-request-id"},
                set_header("x-request-id", f"%REQ({_VALID_REQUEST_ID})%"),
                {"remove": _VALID_REQUEST_ID},
            ],
        ),
    }
