"""One cluster per release, so that its statistics are its own. Pure rendering."""

from __future__ import annotations

from typing import Any

from serving.envoy.config import EnvoyConfig
from serving.envoy.messages import seconds, typed
from serving.routes import Backend, RouteTable
from serving.runtime.modelway_runtime.listener import HEALTH_PATH

_METADATA = "modelway"

# One healthy worker is enough for all of a release's traffic: Envoy would send a share to the next priority as soon as
# fewer than 1/1.4 of them are healthy.
_KEEP_PRIORITY = {"overprovisioning_factor": 100_000}

_HEALTH_CHECK = {
    "timeout": "2s",
    "interval": "1s",
    "no_traffic_interval": "1s",
    "unhealthy_interval": "0.25s",
    "no_traffic_healthy_interval": "1s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
    "http_health_check": {"host": "modelway", "path": HEALTH_PATH},
}

# A socket that takes no connection is left alone for a second after a few failures, sooner than a check notices.
# What a worker answers never counts: a model that fails is the verdict's business.
_OUTLIER_DETECTION = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 3,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
    "interval": "1s",
    "base_ejection_time": "1s",
    "max_ejection_time": "1s",
    "max_ejection_percent": 100,
}


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
        # When no worker is known to be healthy the nodes' listeners get everything, so there is never a reason to panic.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {"cluster_name": name, "endpoints": _localities(backend, config), "policy": _KEEP_PRIORITY},
        **({"health_checks": [_HEALTH_CHECK]} if backend.worker_sockets else {}),
        "outlier_detection": _OUTLIER_DETECTION,
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


def _localities(backend: Backend, config: EnvoyConfig) -> list[dict[str, Any]]:
    """First the workers' own sockets, checked for health; then the nodes' listeners, which queue for whatever worker comes back."""
    nodes = [_node(socket, config) for socket in backend.sockets]
    workers = [{"endpoint": _pipe(socket)} for socket in backend.worker_sockets]
    return [{"priority": priority, "lb_endpoints": endpoints} for priority, endpoints in enumerate(filter(None, (workers, nodes)))]


def _node(socket: str, config: EnvoyConfig) -> dict[str, Any]:
    # Not checked: TorchServe's health tells nothing of a model, and there is nothing else to turn to.
    endpoint: dict[str, Any] = {"endpoint": {**_pipe(socket), "health_check_config": {"disable_active_health_check": True}}}
    bearer = config.bearer(socket)
    if bearer:
        endpoint["metadata"] = {"filter_metadata": {_METADATA: {"authorization": bearer}}}
    return endpoint


def _pipe(socket: str) -> dict[str, Any]:
    return {"address": {"pipe": {"path": socket}}}


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
