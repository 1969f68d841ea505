"""What Envoy is told, as values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import UsageError
from serving.envoy import process
from serving.envoy.bootstrap import LATENCY_BOUNDS_MS, bootstrap
from serving.envoy.clusters import clusters
from serving.envoy.config import EnvoyConfig
from serving.envoy.files import clusters_bytes, grown, prepare, read_table, routes_bytes, table_bytes, write, written_digest
from serving.envoy.messages import seconds
from serving.envoy.routes import routes
from serving.routes import ChannelRoute, RouteTable
from support.envoy_process import backend, canary, live

KEY = "inference-key"
A, B = "/run/a.sock", "/run/b.sock"


def config(tmp_path: Path, **settings: Any) -> EnvoyConfig:
    paths = {"directory": tmp_path / "gateway", "socket_dir": tmp_path / "s", "log": tmp_path / "log", "access_log": tmp_path / "access"}
    return EnvoyConfig(**{**paths, "inference_keys": {A: KEY}, **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"port": 0}, r"invalid gateway port \(0\)"),
        ({"port": 65536}, r"invalid gateway port \(65536\)"),
        ({"concurrency": 0}, r"invalid gateway concurrency \(0\)"),
        ({"request_timeout_s": 0}, r"invalid gateway request_timeout_s \(0\)"),
        ({"idle_timeout_s": -1}, r"invalid gateway idle_timeout_s \(-1\)"),
        ({"max_body_bytes": 1 << 32}, r"invalid gateway max_body_bytes \(4294967296\)"),
        ({"max_header_kib": 9000}, r"invalid gateway max_header_kib \(9000\)"),
        ({"socket_dir": Path("/x" * 60)}, r"too long a path"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        config(tmp_path, **settings)


@pytest.mark.parametrize("key", ["a\nb", "a b", "\u00e4", "a\x00"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=A) as error:
        clusters(live(backend(1, A)), config(tmp_path, inference_keys={A: key}))
    assert key not in str(error.value)


@pytest.mark.parametrize(("value", "text"), [(1, "1s"), (60.0, "60s"), (0.5, "0.5s"), (0.25, "0.25s"), (100.0, "100s"), (1e-3, "0.001s")])
def test_durations_are_protobufs(value: float, text: str) -> None:
    assert seconds(value) == text


def test_latency_bounds_rise_and_are_edges_of_envoys_bins() -> None:
    assert list(LATENCY_BOUNDS_MS) == sorted(set(LATENCY_BOUNDS_MS))
    assert all(len(str(bound).rstrip("0")) <= 2 for bound in LATENCY_BOUNDS_MS)  # bins have two significant digits
    assert (LATENCY_BOUNDS_MS[0], LATENCY_BOUNDS_MS[-1]) == (1, 60000)


def test_the_bootstrap_has_no_key_and_admin_is_on_a_private_socket(tmp_path: Path) -> None:
    settings = config(tmp_path)
    document = bootstrap(settings)
    assert KEY not in json.dumps(document)
    assert document["admin"]["address"] == {"pipe": {"path": str(settings.admin_socket), "mode": 0o600}}


def test_keys_are_in_clusters_only(tmp_path: Path) -> None:
    table, settings = live(backend(1, A, B)), config(tmp_path)
    assert clusters_bytes(table, settings).count(KEY.encode()) == 1
    assert KEY.encode() not in routes_bytes(table, settings)
    assert KEY.encode() not in table_bytes(table)


def test_each_release_has_a_cluster_with_the_sockets_of_its_nodes(tmp_path: Path) -> None:
    document = clusters(live(backend(1, A, B), backend(2, B)), config(tmp_path))
    found = {
        cluster["name"]: [e["endpoint"]["address"]["pipe"]["path"] for e in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]]
        for cluster in document["resources"]
    }
    assert found == {"release-1": [A, B], "release-2": [B]}


def all_routes(table: RouteTable, tmp_path: Path) -> list[dict[str, Any]]:
    return list(routes(table, config(tmp_path))["resources"][0]["virtual_hosts"][0]["routes"])


def to_clusters(found: list[dict[str, Any]], path: str) -> Iterator[tuple[str, Any]]:
    for route in found:
        if route["match"].get("path") == path and "route" in route:
            yield route["route"]["cluster"], route["match"].get("runtime_fraction")


def test_a_canary_is_two_routes_the_first_with_a_fraction(tmp_path: Path) -> None:
    found = all_routes(canary(backend(1, A), backend(2, A), 0.0001), tmp_path)
    share = {"default_value": {"numerator": 1, "denominator": "MILLION"}}
    # Once for the header that says "production", once for none.
    assert list(to_clusters(found, "/v2/models/digits/infer")) == [("release-2", share), ("release-1", None)] * 2


def test_the_whole_traffic_of_a_candidate_is_a_million_of_a_million(tmp_path: Path) -> None:
    found = all_routes(canary(backend(1, A), backend(2, A), 99.9999), tmp_path)
    assert next(to_clusters(found, "/predictions/digits"))[1]["default_value"]["numerator"] == 999_999


@pytest.mark.parametrize(
    ("production", "expected"), [(1, "release-1"), (2, "release-2"), (None, "release-3")], ids=["live is old", "live is newer", "none live"]
)
def test_a_version_of_several_releases_is_the_live_one_or_the_newest(tmp_path: Path, production: int | None, expected: str) -> None:
    releases = tuple(backend(release, A, version=5) for release in (1, 2, 3))
    channels = (ChannelRoute(model="digits", channel="staging", live=1),)
    if production is not None:
        channels = (ChannelRoute(model="digits", channel="production", live=production), *channels)
    found = all_routes(RouteTable(backends=releases, channels=channels), tmp_path)
    assert [cluster for cluster, _ in to_clusters(found, "/predictions/digits/5")] == [expected]


def test_every_route_but_the_last_is_exact(tmp_path: Path) -> None:
    found = all_routes(canary(backend(1, A), backend(2, A), 5), tmp_path)
    assert found[-1]["match"] == {"prefix": "/"}
    assert found[0]["direct_response"]["status"] == 413  # bodies that say before that they are too large
    assert all({"path", "safe_regex"} & set(route["match"]) for route in found[1:-3])
    assert all("direct_response" in route for route in found[-3:])  # before the last: gRPC methods that nobody has
    assert all("path" in route["match"] for route in found if "route" in route)


def test_every_forwarded_path_is_a_prediction_of_the_exact_version(tmp_path: Path) -> None:
    found = all_routes(canary(backend(1, A), backend(2, A), 5), tmp_path)
    paths = {route["route"]["regex_rewrite"]["substitution"] for route in found if "route" in route}
    assert paths == {f"/predictions/digits/{backend(release).engine_version}" for release in (1, 2)}


def test_rendering_is_a_function_of_the_table(tmp_path: Path) -> None:
    table, settings = canary(backend(1, A), backend(2, A), 5), config(tmp_path)
    assert routes_bytes(table, settings) == routes_bytes(table, settings)
    assert routes(table, settings)["version_info"] == clusters(table, settings)["version_info"] == table.digest
    other = dataclasses.replace(table, channels=(dataclasses.replace(table.channels[0], candidate_percent=6.0),))
    assert routes_bytes(other, settings) != routes_bytes(table, settings)


# --- files


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table, settings = canary(backend(1, A), backend(2, A, B), 5), config(tmp_path)
    write(settings.table_file, table_bytes(table))
    assert read_table(settings) == table


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"backends": [], "channels": [{"model": "m"}]}',
        b'{"backends": [1], "channels": []}',
        b'{"backends": [], "channels": [{"model": "m", "channel": "c", "live": 1, "candidate": null, "candidate_percent": 0}]}',
        b'{"backends": [{"signature": {"inputs": [], "outputs": []}, "sockets": []}], "channels": []}',
    ],
)
def test_a_table_file_that_somebody_broke_is_no_table(tmp_path: Path, content: bytes) -> None:
    settings = config(tmp_path)
    write(settings.table_file, content)
    assert read_table(settings) is None
    assert written_digest(settings) is None


def test_prepare_makes_what_envoy_needs_and_keeps_a_table(tmp_path: Path) -> None:
    settings = config(tmp_path)
    prepare(settings)
    assert written_digest(settings) == RouteTable().digest
    table = live(backend(1, A))
    write(settings.table_file, table_bytes(table))
    write(settings.clusters_file, clusters_bytes(table, settings))
    write(settings.routes_file, routes_bytes(table, settings))
    prepare(settings)
    assert written_digest(settings) == table.digest
    assert settings.directory.stat().st_mode & 0o777 == 0o700


def test_growing_keeps_the_backends_of_before_and_the_new_ones_win() -> None:
    before, after = live(backend(1, A), backend(2, A)), live(backend(2, B), backend(3, B))
    both = grown(after, before)
    assert [(one.release_id, one.sockets) for one in both.backends] == [(1, (A,)), (2, (B,)), (3, (B,))]
    assert both.channels == after.channels
    assert grown(after, after) == after
    assert grown(after, None) == after


def test_the_process_inherits_nothing_and_cleans_its_socket(tmp_path: Path) -> None:
    settings = config(tmp_path, concurrency=3)
    spec = process(settings)
    assert spec.name == "gateway"
    assert spec.env == {}
    assert spec.owned_paths == (settings.admin_socket,)
    assert Path(spec.argv[0]).is_file()
    assert spec.argv[spec.argv.index("--concurrency") + 1] == "3"
