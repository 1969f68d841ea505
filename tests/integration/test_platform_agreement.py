"""P13: ledger = alias = route = nodes after every disturbance by hand. P17: only the intended sockets listen."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable

import psutil
import pytest

from modelway.composition import build_nodes, open_registry, open_tracking
from registry.names import ModelVersion
from serving.torchserve import TorchServeNode
from support.live_platform import LivePlatform
from support.polling import wait_until

pytestmark = pytest.mark.integration

MODEL = "agreed"


@pytest.fixture(scope="module")
def agreed(platform: LivePlatform) -> LivePlatform:
    """A platform with a live version and a rollback target, everything in agreement."""
    platform.register(MODEL, 1)
    platform.register(MODEL, 2)
    platform.must("promote", f"{MODEL}/1")
    platform.must("promote", f"{MODEL}/2", "--strategy", "immediate")
    wait_until(lambda: not disagreements(platform), timeout_s=60, what=f"agreement ({disagreements(platform)})")
    return platform


def disagreements(platform: LivePlatform) -> list[str]:
    with platform.control() as control:
        findings = [f for f in control.verify() if MODEL in f["check"] or f["check"] in ("ledger chain", "gateway")]
    return [f"{f['check']}: {f['detail']}" for f in findings if not f["ok"]]


def alias_moved(platform: LivePlatform) -> None:
    open_registry(open_tracking(platform.settings)).set_alias(ModelVersion(MODEL, 1), "production")


def routes_edited(platform: LivePlatform) -> None:
    path = platform.settings.gateway_dir / "routes" / "routes.json"
    edited = path.parent.parent / "routes.edited"
    edited.write_text(path.read_text().replace(f"release-{_live(platform)}", "release-0"))
    edited.replace(path)


def unregistered(platform: LivePlatform) -> None:
    node = TorchServeNode(build_nodes(platform.settings)[0])
    with platform.control() as control:
        record = next(r for r in control.releases(MODEL) if r["id"] == _live(platform))
    node.unregister(MODEL, record["archive"].removeprefix(f"{MODEL}-").removesuffix(".mar"))


def archive_removed(platform: LivePlatform) -> None:
    with platform.control() as control:
        record = next(r for r in control.releases(MODEL) if r["id"] == _live(platform))
    (platform.settings.archives / record["archive"]).unlink()


def _live(platform: LivePlatform) -> int:
    with platform.control() as control:
        return next(c["live"]["release"] for c in control.status()["channels"] if c["model"] == MODEL)


@pytest.mark.parametrize("disturb", [alias_moved, routes_edited, unregistered, archive_removed])
def test_p13_a_disturbance_by_hand_is_mended_or_reported(agreed: LivePlatform, disturb: Callable[[LivePlatform], None]):
    disturb(agreed)
    if disturb is archive_removed:  # nothing needs it now: it is reported, and built again when a node does
        assert any("is missing" in problem for problem in disagreements(agreed))
        assert agreed.run("verify").returncode == 1
        return
    if disturb is alias_moved:  # a request: it becomes a release, through the default canary
        wait_until(lambda: agreed.must("history", MODEL)[-1]["actor"] == "registry", timeout_s=30, what="a release of the registry")
        agreed.must("rollback", MODEL, "--to", "2")
    wait_until(lambda: not disagreements(agreed), timeout_s=60, what=f"agreement after {disturb.__name__}")
    assert agreed.ask(MODEL).headers["x-modelway-version"] == "2"


def test_p17_only_the_intended_sockets_listen(agreed: LivePlatform):
    settings = agreed.settings
    pids = {pid for path in settings.run_dir.glob("*.json") for pid in _tree(json.loads(path.read_text())["pid"])}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    intended = {settings.gateway_port, settings.control_port, settings.mlflow_port}
    others = {c.laddr.port for c in listening} - intended
    assert intended <= {c.laddr.port for c in listening}
    assert len(others) == 2, f"beside the intended ports only TorchServe's two gRPC listeners: {others}"
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}  # Java maps it into IPv6
    sockets = [path for path in settings.socket_dir.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert len(sockets) >= 4
    assert stat.S_IMODE(settings.socket_dir.stat().st_mode) == 0o700


def _tree(pid: int) -> list[int]:
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "//models",
        "/%6dodels",
        "/v2/../models",
        "/predictions/../models",
        "/predictions/%2e%2e/models",
        "/config_dump",
        "/metrics",
    ],
)
def test_p17_management_is_not_behind_the_gateway(agreed: LivePlatform, path: str):
    """The whole corpus runs against Envoy alone in test_envoy_paths.py; here a part of it with TorchServe behind."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", agreed.settings.gateway_port, timeout=10)
    try:
        connection.putrequest("GET", path, skip_host=False)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status in (400, 404, 405)
        assert "error" in json.loads(response.read())
    finally:
        connection.close()


def test_grpc_management_needs_a_key(agreed: LivePlatform):
    """TorchServe's gRPC listeners cannot be turned off; without the key they must do nothing. The keys are private."""
    keys = list(agreed.settings.nodes_dir.rglob("key_file.json"))
    assert keys
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 and path.stat().st_uid == os.geteuid() for path in keys)
    assert all(stat.S_IMODE(path.parent.stat().st_mode) == 0o700 for path in keys)
