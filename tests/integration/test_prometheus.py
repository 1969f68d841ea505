"""Real promtool and Prometheus read the generated files, scrape real metrics and raise the alerts."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitoring.metrics import ControllerMetrics
from monitoring.prometheus import ScrapeTarget, prometheus_yml, rules_yml
from serving.plan import Observed
from serving.ports import GatewayState, NodeState
from support.envoy_process import RunningEnvoy, backend, live
from support.polling import wait_until
from support.ports import free_port
from support.uds_server import UdsServer
from support.worlds import ledger, release
from support.worlds import live as went_live

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("prometheus") is None or shutil.which("promtool") is None, reason="prometheus is not installed"),
]

GATEWAY = 'envoy_http_conn_manager_prefix="gateway"'
GOOD = f"envoy_http_downstream_rq_completed{{{GATEWAY}}}"
BAD = f'envoy_http_downstream_rq_xx{{{GATEWAY},envoy_response_code_class="5"}}'


def promtool(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(prometheus_yml([ScrapeTarget(job="modelway-gateway", address="127.0.0.1:1", path="/m")]))
    (tmp_path / "rules.yml").write_text(rules_yml())
    assert "SUCCESS: 9 rules found" in promtool("check", "config", "prometheus.yml", cwd=tmp_path)


@pytest.mark.parametrize(
    ("alert", "series", "at", "fires"),
    [
        ("ModelwayReleaseAborted", {'modelway_rollout_seconds_count{outcome="aborted"}': "0x3 1x10"}, "5m", True),
        ("ModelwayReleaseAborted", {'modelway_rollout_seconds_count{outcome="live"}': "0x3 1x10"}, "5m", False),
        ("ModelwayOutOfSync", {"modelway_in_sync": "0x10"}, "3m", True),
        ("ModelwayOutOfSync", {"modelway_in_sync": "0 1x10"}, "3m", False),
        ("ModelwayNodeDown", {'modelway_node_reachable{node="node-0"}': "1 0x10"}, "5m", True),
        ("ModelwayGatewayDown", {"modelway_gateway_reachable": "0x10"}, "2m", True),
        ("ModelwayRegistryDown", {"modelway_registry_reachable": "0x10"}, "6m", True),
        ("ModelwayRegistryDown", {"modelway_registry_reachable": "0x2 1x10"}, "6m", False),
        ("ModelwayControllerStuck", {"modelway_last_look_timestamp_seconds": "0x10"}, "5m", True),
        ("ModelwayControllerStuck", {'up{job="modelway-controller"}': "1 0x10"}, "5m", True),
        ("ModelwayErrorBudgetBurn1h", {GOOD: "0+1000x70", BAD: "0+20x70"}, "65m", True),
        ("ModelwayErrorBudgetBurn1h", {GOOD: "0+1000x70", BAD: "0+10x70"}, "65m", False),
        ("ModelwayErrorBudgetBurn1h", {GOOD: "0+1x70", BAD: "0+0.2x70"}, "65m", False),
        ("ModelwayErrorBudgetBurn1h", {GOOD: "0+1000x90", BAD: "0+100x30 3000x60"}, "50m", False),
        ("ModelwayErrorBudgetBurn6h", {GOOD: "0+1000x400", BAD: "0+10x400"}, "370m", True),
    ],
    ids=[
        "aborted",
        "not aborted",
        "out of sync",
        "in sync again",
        "node down",
        "gateway down",
        "registry down",
        "registry back",
        "controller stuck",
        "controller gone",
        "fast burn",
        "slower than fast",
        "too few events",
        "over already",
        "slow burn",
    ],
)
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path, *, alert: str, series: dict[str, str], at: str, fires: bool) -> None:
    (tmp_path / "rules.yml").write_text(rules_yml())
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    # promtool compares labels and annotations too, so the alert is asked for by its own series.
    question = {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', "eval_time": at}
    question["exp_samples"] = [{"labels": "{}", "value": 1}] if fires else []
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": [question]}]
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", "test.yml", cwd=tmp_path)


class _Metrics(BaseHTTPRequestHandler):
    """Hands metrics through, as the control API does."""

    pages: dict[str, Any]

    def do_GET(self) -> None:
        body = self.pages[self.path]().encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(pages: dict[str, Any]) -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Metrics,), {"pages": pages}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_prometheus_scrapes_the_controller_and_the_gateway(tmp_path: Path, serve: Any) -> None:
    metrics, port = ControllerMetrics(), free_port()
    observed = Observed(nodes={"node-0": NodeState(reachable=True)}, sockets={}, gateway=GatewayState(reachable=False), verdicts={})
    metrics.looked(ledger(release(1, 4), went_live(1)), observed, (), 0.01)
    with RunningEnvoy() as envoy, UdsServer(envoy.sockets / "a.sock") as node:
        envoy.gateway.apply(live(backend(1, node.socket)))
        for _ in range(5):
            httpx.post(f"{envoy.url}/predictions/digits", json={})
        address = f"127.0.0.1:{serve({'/metrics': metrics.text, '/metrics/gateway': envoy.gateway.metrics_text})}"
        targets = [
            ScrapeTarget(job="modelway-controller", address=address),
            ScrapeTarget(job="modelway-gateway", address=address, path="/metrics/gateway"),
        ]
        (tmp_path / "prometheus.yml").write_text(prometheus_yml(targets, interval_s=1))
        (tmp_path / "rules.yml").write_text(rules_yml())
        arguments = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
        with (tmp_path / "log").open("wb") as log:
            prometheus = subprocess.Popen(["prometheus", *arguments], cwd=tmp_path, stdout=log, stderr=log)
        try:

            def value(query: str) -> float | None:
                try:
                    found = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}).json()["data"]["result"]
                except (httpx.HTTPError, ValueError, KeyError):
                    return None
                return float(found[0]["value"][1]) if found else None

            wait_until(lambda: value("sum(up)") == 2, 60, "two targets up")
            assert value('modelway_live_version{model="digits",channel="production"}') == 4
            assert value('envoy_cluster_upstream_rq_completed{envoy_cluster_name="release-1"}') == 5
            assert value('histogram_quantile(0.95, envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="release-1"})') is not None
            wait_until(lambda: value('ALERTS{alertname="ModelwayGatewayDown"}') == 1, 30, "the alert")
        finally:
            prometheus.terminate()
            prometheus.wait(20)
