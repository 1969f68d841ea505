"""One cluster per release, so that its statistics are its own. Pure rendering."""

from __future__ import annotations

from typing import Any

from serving.envoy.bootstrap import seconds, typed
from serving.envoy.config import EnvoyConfig
from serving.routes import Backend, RouteTable

_METADATA = "modelway"


def cluster_name(release_id: int) -> str:
    """The cluster of a release; also its name in Envoy's statistics."""
    return f"release-{release_id}"


def clusters(table: RouteTable, config: EnvoyConfig) -> dict[str, Any]:
    """The discovery document of all clusters. Raises UsageError for an inference key that is no header value."""
    return {
        "version_info": table.digest,
        "resources": [
            {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", **_cluster(backend, config)} for backend in table.backends
        ],
    }


def _cluster(backend: Backend, config: EnvoyConfig) -> dict[str, Any]:
    name = cluster_name(backend.release_id)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": seconds(config.connect_timeout_s),
        "lb_policy": "LEAST_REQUEST",
        # Without active health checks there is no health to panic about: every socket is tried.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(socket, config) for socket in backend.sockets]}] if backend.sockets else [],
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": config.max_active_requests,
                    "max_requests": config.max_active_requests,
                    "max_pending_requests": config.max_pending_requests,
                    "max_retries": max(3, config.max_active_requests // 4),
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http_protocol_options": {}},
                # Shorter than any server's own, so that a request does not meet a connection that is being closed.
                common_http_protocol_options={"idle_timeout": "30s"},
                http_filters=[_authorize(), {"name": "envoy.filters.http.upstream_codec", "typed_config": _codec()}],
            )
        },
    }


def _endpoint(socket: str, config: EnvoyConfig) -> dict[str, Any]:
    endpoint: dict[str, Any] = {"endpoint": {"address": {"pipe": {"path": socket}}}}
    bearer = config.bearer(socket)
    if bearer:
        endpoint["metadata"] = {"filter_metadata": {_METADATA: {"authorization": bearer}}}
    return endpoint


def _authorize() -> dict[str, Any]:
    """Give each node its own key. Runs once the node is chosen, on the way up only: no client ever sees it."""
    value = f"%UPSTREAM_METADATA({_METADATA}:authorization)%"
    mutation = {"append": {"header": {"key": "authorization", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": typed("filters.http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": [mutation]}),
    }


def _codec() -> dict[str, Any]:
    return typed("filters.http.upstream_codec.v3.UpstreamCodec")
