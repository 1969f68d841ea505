"""Prometheus' files, as values. `tests/integration/test_prometheus.py` asks Prometheus itself."""

from __future__ import annotations

import pytest
import yaml

from monitoring.prometheus import ScrapeTarget, prometheus_yml, rules_yml
from registry.errors import UsageError


def test_each_target_is_a_job_with_its_path() -> None:
    document = yaml.safe_load(prometheus_yml([ScrapeTarget(job="a", address="h:1"), ScrapeTarget(job="b", address="h:1", path="/m")]))
    assert document["rule_files"] == ["rules.yml"]
    assert [(s["job_name"], s["metrics_path"], s["static_configs"]) for s in document["scrape_configs"]] == [
        ("a", "/metrics", [{"targets": ["h:1"]}]),
        ("b", "/m", [{"targets": ["h:1"]}]),
    ]


@pytest.mark.parametrize("address", ["h", "h:", ":1", "h:x"])
def test_a_bad_address_is_named(address: str) -> None:
    with pytest.raises(UsageError, match="Write HOST:PORT"):
        ScrapeTarget(job="a", address=address)


def test_a_bad_path_and_a_job_twice_are_named() -> None:
    with pytest.raises(UsageError, match="'metrics'"):
        ScrapeTarget(job="a", address="h:1", path="metrics")
    with pytest.raises(UsageError, match=r"same job \(a\)"):
        prometheus_yml([ScrapeTarget(job="a", address="h:1")] * 2)


@pytest.mark.parametrize("objective", [0.0, 1.0, 99.9])
def test_a_bad_objective_is_named(objective: float) -> None:
    with pytest.raises(UsageError, match="invalid objective"):
        rules_yml(objective=objective)


def test_burn_rates_are_those_of_the_workbook() -> None:
    rules = yaml.safe_load(rules_yml(objective=0.999))["groups"][0]["rules"]
    burns = {rule["alert"]: rule["expr"] for rule in rules if "Burn" in rule["alert"]}
    assert list(burns) == ["ModelwayErrorBudgetBurn1h", "ModelwayErrorBudgetBurn6h", "ModelwayErrorBudgetBurn3d"]
    assert [expression.count(limit) for expression, limit in zip(burns.values(), ("> 0.0144", "> 0.006", "> 0.001"), strict=True)] == [
        2,
        2,
        2,
    ]
