"""Prometheus' own files: what it scrapes, and when it wakes somebody. Pure rendering.

Prometheus cannot scrape Unix sockets, so the control API hands the metrics of gateway and nodes through.
Burn rates follow https://sre.google/workbook/alerting-on-slos/ (multiple windows, multiple burn rates).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from registry.errors import UsageError

RULES_FILE = "rules.yml"

_BAD = 'sum(increase(envoy_http_downstream_rq_xx{{envoy_http_conn_manager_prefix="gateway",envoy_response_code_class="5"}}[{window}]))'
_ALL = 'sum(increase(envoy_http_downstream_rq_completed{{envoy_http_conn_manager_prefix="gateway"}}[{window}]))'

# (burn rate, long window, short window, severity): 2% of a month's budget in an hour, 5% in six hours, 10% in three days.
_BURN_RATES = ((14.4, "1h", "5m", "page"), (6.0, "6h", "30m", "page"), (1.0, "3d", "6h", "ticket"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScrapeTarget:
    """One thing to scrape.

    Attributes:
        job: Its name in the `job` label.
        address: `host:port`.
        path: Where its metrics are.
    """

    job: str
    address: str
    path: str = "/metrics"

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise UsageError(f"not an address to scrape ({self.address!r})", "Write HOST:PORT.")
        if not self.path.startswith("/"):
            raise UsageError(f"not a path to scrape ({self.path!r})", "Start it with '/'.")


def prometheus_yml(targets: Sequence[ScrapeTarget], *, interval_s: int = 5) -> str:
    """A complete `prometheus.yml`; it expects `rules.yml` beside it. Raises UsageError for two targets of one job."""
    jobs = [target.job for target in targets]
    twice = sorted({job for job in jobs if jobs.count(job) > 1})
    if twice:
        raise UsageError(f"two targets have the same job ({', '.join(twice)})", "Give each its own name.")
    scrapes = [
        {"job_name": target.job, "metrics_path": target.path, "static_configs": [{"targets": [target.address]}]} for target in targets
    ]
    timing = {"scrape_interval": f"{interval_s}s", "scrape_timeout": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"}
    return _yaml({"global": timing, "rule_files": [RULES_FILE], "scrape_configs": scrapes})


def rules_yml(*, objective: float = 0.999, min_events: int = 20) -> str:
    """Alert rules.

    Args:
        objective: Share of requests that is to be answered without a 5xx.
        min_events: Failed requests in a burn rate's long window that it needs: one error in a quiet night is no fire.

    Raises:
        UsageError: If the objective is not between 0 and 1.
    """
    if not 0 < objective < 1:
        raise UsageError(f"invalid objective ({objective})", "Use a share between 0 and 1, for example 0.999.")
    return _yaml({"groups": [{"name": "modelway", "rules": [*_platform_rules(), *_burn_rules(objective, min_events)]}]})


def _platform_rules() -> Iterator[dict[str, Any]]:
    yield _alert(
        "ModelwayReleaseAborted",
        'increase(modelway_rollout_seconds_count{outcome="aborted"}[10m]) > 0',
        "0s",
        "ticket",
        "A release was aborted. `modelway history MODEL` says why.",
    )
    yield _alert(
        "ModelwayOutOfSync", "modelway_in_sync == 0", "2m", "ticket", "Nodes or gateway are not what the ledger says: modelway verify"
    )
    yield _alert("ModelwayNodeDown", "modelway_node_reachable == 0", "1m", "page", "Node {{ $labels.node }} does not answer.")
    yield _alert("ModelwayGatewayDown", "modelway_gateway_reachable == 0", "30s", "page", "The gateway does not answer: nobody is served.")
    yield _alert(
        "ModelwayRegistryDown", "modelway_registry_reachable == 0", "5m", "ticket", "The model registry does not answer; serving goes on."
    )
    yield _alert(
        "ModelwayControllerStuck",
        'time() - modelway_last_look_timestamp_seconds > 60 or up{job="modelway-controller"} == 0',
        "1m",
        "page",
        "The controller does not look any more: no release and no rollback will happen.",
    )


def _burn_rules(objective: float, min_events: int) -> Iterator[dict[str, Any]]:
    for rate, long, short, severity in _BURN_RATES:
        limit = f"{rate * (1 - objective):.6g}"
        parts = [f"{_BAD.format(window=window)} / {_ALL.format(window=window)} > {limit}" for window in (long, short)]
        parts.append(f"{_BAD.format(window=long)} >= {min_events}")
        text = f"Clients get 5xx at {rate:g} times the rate that {objective:.4%} allows, over {long} and {short}."
        yield _alert(f"ModelwayErrorBudgetBurn{long}", " and ".join(f"({part})" for part in parts), "0s", severity, text)


def _alert(name: str, expression: str, held: str, severity: str, summary: str) -> dict[str, Any]:
    return {"alert": name, "expr": expression, "for": held, "labels": {"severity": severity}, "annotations": {"summary": summary}}


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=1000)
