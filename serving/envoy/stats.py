"""What Envoy tells of itself, read from its Prometheus text. Pure parsing.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from registry.errors import Unavailable
from registry.verdict import ReleaseCounters

_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_RELEASE = re.compile(r"release-(\d+)")

# Envoy's own names, before they are turned into Prometheus ones; only these are asked for.
FILTER = (
    r"^(cluster\.release-\d+\.upstream_rq_(active|pending_active|completed|5xx|time|retry_success)"
    r"|cluster\.release-\d+\.upstream_cx_destroy_remote_with_active_rq"
    r"|cluster_manager\.warming_clusters"
    r"|(cluster_manager\.cds|http\.gateway\.rds\.modelway)\.(update_(success|failure|rejected)|version_text)"
    r"|http\.gateway\.downstream_(cx|rq)_active"
    r"|server\.dropped_stat_flushes)$"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Updates:
    """How Envoy follows one of its files.

    Attributes:
        version: The version that it has loaded; empty if none.
        attempts: Times that it read the file and was done with it, well or badly.
        failures: Times that it could not use what it read.
    """

    version: str = ""
    attempts: int = 0
    failures: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Envoy's counters at one moment.

    Attributes:
        num_warming: Clusters that wait for the first health check of their workers; until then their predecessors serve, and
            a new one is not there.
        dropped_flushes: Statistics merges that were asked for while one was under way.
        active_requests: Client requests in flight in all.
        connections: Client connections in all.
        active: Release id -> requests on their way to a node or waiting for a connection to one.
    """

    clusters: Updates = field(default_factory=Updates)
    routes: Updates = field(default_factory=Updates)
    num_warming: int = 0
    dropped_flushes: int = 0
    active_requests: int = 0
    connections: int = 0
    active: Mapping[int, int] = field(default_factory=dict)
    counters: Mapping[int, ReleaseCounters] = field(default_factory=dict)


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Each sample of a Prometheus text: name, labels, value. Raises Unavailable for a line that is none."""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        try:
            assert match is not None
            yield match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])
        except (AssertionError, ValueError):
            raise Unavailable(f"the gateway's statistics cannot be read ({line[:200]!r})", "Check the version of Envoy.") from None


def parse(text: str) -> Snapshot:
    """Read one answer of `/stats/prometheus?text_readouts&filter=FILTER`. Raises Unavailable for anything else."""
    numbers: dict[str, int] = {}
    versions: dict[str, str] = {}
    releases: dict[int, dict[str, int]] = {}
    buckets: dict[int, dict[float, int]] = {}
    for name, labels, value in samples(text):
        release = _RELEASE.fullmatch(labels.get("envoy_cluster_name", ""))
        if "text_value" in labels:
            versions[name] = labels["text_value"]
        elif release is None:
            numbers[name] = int(value)
        elif name == "envoy_cluster_upstream_rq_time_bucket":
            buckets.setdefault(int(release[1]), {})[float(labels["le"])] = int(value)
        elif name != "envoy_cluster_upstream_rq_xx" or labels.get("envoy_response_code_class") == "5":
            releases.setdefault(int(release[1]), {})[name] = int(value)
    return Snapshot(
        clusters=_updates("envoy_cluster_manager_cds", numbers, versions),
        routes=_updates("envoy_http_rds", numbers, versions),
        num_warming=numbers.get("envoy_cluster_manager_warming_clusters", 0),
        dropped_flushes=numbers.get("envoy_server_dropped_stat_flushes", 0),
        active_requests=numbers.get("envoy_http_downstream_rq_active", 0),
        connections=numbers.get("envoy_http_downstream_cx_active", 0),
        active={
            release_id: values.get("envoy_cluster_upstream_rq_active", 0) + values.get("envoy_cluster_upstream_rq_pending_active", 0)
            for release_id, values in releases.items()
        },
        counters={
            release_id: ReleaseCounters(
                num_requests=values.get("envoy_cluster_upstream_rq_completed", 0),
                num_errors=values.get("envoy_cluster_upstream_rq_xx", 0) + _num_deaths_hidden(values),
                latency_buckets=buckets.get(release_id, {}),
            )
            for release_id, values in releases.items()
        },
    )


def _num_deaths_hidden(values: Mapping[str, int]) -> int:
    """Requests over which a worker died and that another one answered: clients saw nothing, but the release failed them.

    A connect that failed is the node's fault, not the model's, and counts for nothing.
    """
    deaths = values.get("envoy_cluster_upstream_cx_destroy_remote_with_active_rq", 0)
    return min(deaths, values.get("envoy_cluster_upstream_rq_retry_success", 0))


def _updates(prefix: str, numbers: Mapping[str, int], versions: Mapping[str, str]) -> Updates:
    return Updates(
        version=versions.get(f"{prefix}_version_text", ""),
        attempts=numbers.get(f"{prefix}_update_success", 0)
        + numbers.get(f"{prefix}_update_failure", 0)
        + numbers.get(f"{prefix}_update_rejected", 0),
        failures=numbers.get(f"{prefix}_update_failure", 0) + numbers.get(f"{prefix}_update_rejected", 0),
    )
