"""The two ways into a worker, on the whole platform: requests take the workers' own sockets, and when those die, none is lost."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from modelway.composition import build_nodes
from support.live_platform import LivePlatform, wrong_answers
from support.polling import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """A platform with two workers of each version, and `digits/1` live."""
    platform = LivePlatform(tmp_path_factory.mktemp("pair") / "home", overrides={"workers_per_version": 2})
    platform.up()
    platform.register("digits", 1)
    platform.must("promote", "digits/1")
    yield platform
    platform.down()


def sockets(platform: LivePlatform) -> list[Path]:
    (node,) = build_nodes(platform.settings)
    return sorted(node.worker_socket_dir.glob("*.sock"))


def num_run(path: Path) -> int:
    """How many requests a worker has run."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        lines = client.get("http://worker/metrics").text.splitlines()
    return next(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("modelway_worker_batch_size_sum"))


def worker_pids(platform: LivePlatform) -> list[int]:
    node = psutil.Process(platform.child("node-0"))
    return sorted(child.pid for child in node.children(recursive=True) if _is_worker(child))


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "--sock-name" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it has just died
        return False


def listening(platform: LivePlatform) -> int:
    """Worker sockets that take a connection."""
    return sum(_takes_connections(path) for path in sockets(platform))


def used_by_the_gateway(platform: LivePlatform) -> int:
    """Workers that the gateway's health checks have found, or found again; the node's own listener is not counted."""
    lines = httpx.get(f"{platform.settings.control_url}/metrics/gateway").text.splitlines()
    healthy = [line for line in lines if line.startswith("envoy_cluster_membership_healthy{") and '"release-1"' in line]
    return int(healthy[0].rpartition(" ")[2]) - 1


def _takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def test_requests_take_the_workers_own_sockets(pair: LivePlatform) -> None:
    wait_until(lambda: listening(pair) == 2, timeout_s=60, what="both workers answer")
    pair.wait_in_sync()
    before = [num_run(path) for path in sockets(pair)]
    for _ in range(60):
        assert pair.ask("digits").status_code == 200
    after = [num_run(path) for path in sockets(pair)]
    assert all(now - then >= 10 for then, now in zip(before, after, strict=True))


def test_p7_killed_workers_fail_no_request(pair: LivePlatform) -> None:
    with pair.load("digits", 100) as load:
        for number in range(4):
            # A kill every 10 s, says the promise: the other worker must be back in the gateway's eyes, not just on its feet.
            wait_until(lambda: listening(pair) == len(worker_pids(pair)) == used_by_the_gateway(pair) == 2, timeout_s=120, what="two serve")
            os.kill(worker_pids(pair)[number % 2], signal.SIGKILL)
        wait_until(lambda: listening(pair) == used_by_the_gateway(pair) == 2, timeout_s=120, what="two workers serve again")
    assert wrong_answers(load.answers) == []
    assert pair.must("history", "digits")[-1]["status"] == "live"


def test_sockets_that_are_gone_leave_the_engines_own_way(pair: LivePlatform) -> None:
    moved = [(path, path.with_suffix(".away")) for path in sockets(pair)]
    with pair.load("digits", 100) as load:
        for path, away in moved:
            path.rename(away)
        wait_until(lambda: len(load.answers) > 300, what="requests without a socket")
        for path, away in moved:
            away.rename(path)
    assert wrong_answers(load.answers) == []
    pair.wait_in_sync()
