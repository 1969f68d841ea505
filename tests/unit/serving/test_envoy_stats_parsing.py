"""What Envoy tells, as values."""

from __future__ import annotations

import re
from math import inf

import pytest

from registry.errors import Unavailable
from registry.verdict import ReleaseCounters
from serving.envoy.stats import FILTER, Snapshot, Updates, parse, samples

# As Envoy 1.40 prints it, shortened.
TEXT = """\
# TYPE envoy_cluster_upstream_rq_completed counter
envoy_cluster_upstream_rq_completed{envoy_cluster_name="release-1"} 30
envoy_cluster_upstream_rq_completed{envoy_cluster_name="release-12"} 0
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="release-1"} 3
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="release-1"} 27
envoy_cluster_manager_cds_update_success{} 7
envoy_cluster_manager_cds_update_failure{} 1
envoy_cluster_manager_cds_update_rejected{} 2
envoy_http_rds_update_success{envoy_rds_route_config="modelway",envoy_http_conn_manager_prefix="gateway"} 4
envoy_server_dropped_stat_flushes{} 5
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="release-1"} 2
envoy_cluster_upstream_rq_pending_active{envoy_cluster_name="release-1"} 1
envoy_http_downstream_cx_active{envoy_http_conn_manager_prefix="gateway"} 9
envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix="gateway"} 8
envoy_cluster_manager_cds_version_text{text_value="abc"} 0
envoy_http_rds_version_text{envoy_rds_route_config="modelway",text_value="d\\"e\\\\f"} 0
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="release-1",le="1"} 20
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="release-1",le="60000"} 27
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="release-1",le="+Inf"} 28
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="release-1"} 1.5e+05
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="release-1"} 28

"""


def test_counters_gauges_texts_and_histograms_are_read() -> None:
    snapshot = parse(TEXT)
    assert snapshot.clusters == Updates(version="abc", attempts=10, failures=3)
    assert snapshot.routes.attempts == 4
    assert (snapshot.dropped_flushes, snapshot.connections, snapshot.active_requests) == (5, 9, 8)
    assert snapshot.active == {1: 3, 12: 0}
    assert snapshot.counters == {
        1: ReleaseCounters(num_requests=30, num_errors=3, latency_buckets={1.0: 20, 60000.0: 27, inf: 28}),
        12: ReleaseCounters(),
    }


def test_a_gateway_without_routes_has_counted_nothing() -> None:
    assert parse("") == Snapshot()


@pytest.mark.parametrize("line", ["<html>", "name{", 'name{a="b"} x', "name", '{"stats": []}'])
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        parse(line)


def test_escapes_in_labels_are_not_the_end_of_them() -> None:
    assert list(samples('a{b="x\\"} 5",c="d"} 1')) == [("a", {"b": 'x\\"} 5', "c": "d"}, 1.0)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cluster.release-12.upstream_rq_5xx", True),
        ("cluster.release-1.upstream_rq_time", True),
        ("http.gateway.rds.modelway.version_text", True),
        ("server.dropped_stat_flushes", True),
        ("cluster.release-1.external.upstream_rq_5xx", False),
        ("cluster.release-1.upstream_rq_500", False),
        ("http.admin.downstream_rq_active", False),
        ("http.gateway.downstream_rq_active_overload", False),
    ],
)
def test_only_what_is_needed_is_asked_for(name: str, wanted: bool) -> None:
    assert bool(re.search(FILTER, name)) is wanted
