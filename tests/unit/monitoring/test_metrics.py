"""What the controller reports, read back as Prometheus reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics import METRICS, ControllerMetrics
from registry.errors import Unavailable
from registry.release import EventKind, LedgerState
from serving.controller import ControllerReport
from serving.plan import Observed
from serving.ports import GatewayState, NodeState
from serving.steps import Step, Unload, Wait
from support.worlds import NOW, event, ledger, live, release


@dataclass
class Reported:
    """A controller's metrics and its looks."""

    metrics: ControllerMetrics = field(default_factory=lambda: ControllerMetrics(clock=lambda: 1000.0))

    def look(
        self, desired: LedgerState, *, nodes: dict[str, bool] | None = None, gateway: bool = True, steps: tuple[Step, ...] = ()
    ) -> None:
        report: ControllerReport = self.metrics  # the controller's own protocol, checked by mypy and by use
        states = {name: NodeState(reachable=reachable) for name, reachable in (nodes or {"node-0": True}).items()}
        observed = Observed(nodes=states, sockets={}, gateway=GatewayState(reachable=gateway), verdicts={})
        report.looked(desired, observed, steps, 0.03)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(self.metrics.text())
        found = [sample for family in families for sample in family.samples if sample.name == name]
        return {tuple(value for key, value in sorted(sample.labels.items()) if key != "le"): sample.value for sample in found}


def test_each_metric_is_declared_once_with_help_and_its_unit_in_its_name() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("modelway_")
        assert metric.help.endswith(".")
        assert metric.name.endswith(metric.unit)


def test_two_controllers_in_one_process_never_meet() -> None:
    first, second = Reported(), Reported()
    first.look(ledger(release(1, 1), live(1)))
    assert second.samples("modelway_live_version") == {}


def test_a_look_tells_what_is_live_and_what_became_of_releases() -> None:
    reported = Reported()
    reported.look(ledger(release(1, 1), live(1), release(2, 7), live(2), release(3, 8), event(3, EventKind.ABORTED, reason="slow")))
    assert reported.samples("modelway_live_version") == {("production", "digits"): 7}
    assert reported.samples("modelway_live_release") == {("production", "digits"): 2}
    counts = {key[2]: value for key, value in reported.samples("modelway_releases").items()}
    assert counts == {"pending": 0, "progressing": 0, "live": 1, "retired": 1, "aborted": 1, "superseded": 0}
    assert reported.samples("modelway_last_look_timestamp_seconds") == {(): 1000.0}
    assert reported.samples("modelway_look_seconds_count") == {(): 1}


def test_a_candidates_share_is_told_while_it_has_one() -> None:
    reported = Reported()
    entries = (release(1, 1), live(1), release(2, 2), event(2, EventKind.WEIGHTED, step=0, percent=10.0, counters={}))
    reported.look(ledger(*entries))
    assert reported.samples("modelway_candidate_share_percent") == {("production", "digits"): 10}
    reported.look(ledger(*entries, event(2, EventKind.ABORTED, reason="slow")))
    assert reported.samples("modelway_candidate_share_percent") == {("production", "digits"): 0}


def test_what_is_gone_is_no_longer_told() -> None:
    reported = Reported()
    reported.look(ledger(release(1, 1), live(1)), nodes={"node-0": True, "node-1": False})
    assert reported.samples("modelway_node_reachable") == {("node-0",): 1, ("node-1",): 0}
    reported.look(ledger(), nodes={"node-1": True}, gateway=False)
    assert reported.samples("modelway_node_reachable") == {("node-1",): 1}
    assert reported.samples("modelway_live_version") == {}
    assert reported.samples("modelway_gateway_reachable") == {(): 0}


@pytest.mark.parametrize(
    ("steps", "in_sync"),
    [
        ((), 1),
        ((Wait(release_id=1, reason="10% for 3 s more"),), 1),
        ((Wait(release_id=1, reason="x"), Unload(node="node-0", model="digits", engine_version="1")), 0),
    ],
    ids=["nothing to do", "waiting", "something to do"],
)
def test_in_sync_means_that_nothing_is_left_to_do(steps: tuple[Step, ...], in_sync: int) -> None:
    reported = Reported()
    reported.look(ledger(), steps=steps)
    assert reported.samples("modelway_in_sync") == {(): in_sync}


def test_rollouts_are_counted_when_they_end_and_only_once() -> None:
    reported, before = Reported(), (release(1, 1), live(1), release(2, 2))
    ended = live(2, at=NOW + timedelta(seconds=4))
    fast = release(3, 3), event(3, EventKind.ABORTED, at=NOW + timedelta(seconds=1), reason="golden probe failed")
    reported.look(ledger(*before))
    assert reported.samples("modelway_rollout_seconds_count") == {("live",): 0, ("aborted",): 0, ("superseded",): 0}
    reported.look(ledger(*before, ended))
    reported.look(ledger(*before, ended))
    assert reported.samples("modelway_rollout_seconds_count")["live",] == 1
    assert reported.samples("modelway_rollout_seconds_sum")["live",] == 4
    reported.look(ledger(*before, ended, *fast))  # began and ended between two looks
    assert reported.samples("modelway_rollout_seconds_count") == {("live",): 1, ("aborted",): 1, ("superseded",): 0}


def test_a_controller_that_starts_anew_does_not_count_the_past_again() -> None:
    reported = Reported()
    reported.look(ledger(release(1, 1), live(1)))
    assert set(reported.samples("modelway_rollout_seconds_count").values()) == {0}


def test_steps_and_failures_are_counted_by_kind() -> None:
    reported, step = Reported(), Unload(node="node-0", model="digits", engine_version="1")
    reported.metrics.applied(step)
    reported.metrics.failed(step, Unavailable("node-0 does not answer"))
    assert reported.samples("modelway_steps_total") == {("Unload",): 1}
    assert reported.samples("modelway_step_failures_total") == {("Unavailable", "Unload"): 1}


def test_the_registry_is_told_apart() -> None:
    reported = Reported()
    reported.metrics.registry_answered(True)
    assert reported.samples("modelway_registry_reachable") == {(): 1}
    reported.metrics.registry_answered(False)
    assert reported.samples("modelway_registry_reachable") == {(): 0}


def test_rendering_names_its_content_type() -> None:
    body, content_type = ControllerMetrics().render()
    assert content_type.startswith("text/plain")
    assert b"modelway_build_info{version=" in body
