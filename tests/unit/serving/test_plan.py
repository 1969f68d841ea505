"""The planner's rules, one small world each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry.release import EventKind
from registry.verdict import Outcome, ReleaseCounters, Verdict
from serving.plan import Observed, plan, wanted_table
from serving.ports import GatewayState, LoadState
from serving.routes import RouteTable
from serving.steps import ApplyRoutes, Probe, Record, Register, Scale, Step, StoreArchive, Unload, Wait
from support.worlds import CANARY, NOW, POLICY, event, later, ledger, live, node, release, rollback, world

ONE, TWO = release(1, 1), release(2, 2, strategy=CANARY)
STARTED, LOADED, PROBED = EventKind.STARTED, EventKind.LOADED, EventKind.PROBED
UP_TO_PROBED = (event(2, STARTED), event(2, LOADED), event(2, PROBED))
TEN_PERCENT = event(2, EventKind.WEIGHTED, step=0, percent=10.0, counters={})
READY_BOTH = node((ONE, LoadState.READY), (TWO, LoadState.READY))


def settled(desired, observed: Observed, **gateway) -> Observed:
    """The world with a gateway that has taken the wanted routes."""
    table = wanted_table(desired, observed, NOW, POLICY)
    ids = [backend.release_id for backend in table.backends]
    state = GatewayState(reachable=True, active=dict.fromkeys(ids, 0), counters={i: ReleaseCounters() for i in ids})
    observed = replace(observed, gateway=replace(state, **gateway))
    return replace(observed, gateway=replace(observed.gateway, digest=wanted_table(desired, observed, NOW, POLICY).digest))


def steps_of(desired, observed: Observed, now=NOW) -> list[Step]:
    return list(plan(desired, observed, now, POLICY))


def test_an_empty_ledger_wants_an_empty_table_and_nothing_loaded():
    observed = world(node((ONE, LoadState.READY)), gateway=GatewayState(reachable=True, digest=RouteTable().digest))
    assert steps_of({}, observed) == [Unload(node="node-0", model="digits", engine_version=ONE.engine_version)]


@pytest.mark.parametrize(
    ("state", "stored", "expected"),
    [
        (None, False, StoreArchive),
        (None, True, Register),
        (LoadState.REGISTERED, True, Scale),
        (LoadState.LOADING, True, Wait),
        (LoadState.READY, True, Record),
    ],
)
def test_a_candidate_is_loaded_step_by_step(state, stored, expected):
    desired = ledger(ONE, event(1, STARTED))
    on_node = node((ONE, state)) if state else replace(node(), stored=frozenset({ONE.archive} if stored else ()))
    (step,) = steps_of(desired, settled(desired, world(on_node)))
    assert isinstance(step, expected)


def test_a_candidate_waits_for_every_node_that_is_up_and_for_no_other():
    desired = ledger(ONE, event(1, STARTED))
    ready = node((ONE, LoadState.READY))
    one_loads = settled(desired, world(ready, node((ONE, LoadState.LOADING))))
    one_down = settled(desired, world(ready, node(reachable=False)))
    assert [type(step) for step in steps_of(desired, one_loads)] == [Wait]
    assert steps_of(desired, one_down) == [Record(release_id=1, kind=LOADED, data={"nodes": ["node-0"]})]


def test_no_traffic_before_the_golden_probe():
    desired = ledger(ONE, event(1, STARTED), event(1, LOADED))
    (step,) = steps_of(desired, settled(desired, world(node((ONE, LoadState.READY)))))
    assert step == Probe(release_id=1, nodes=("node-0",))


def test_the_first_release_goes_to_100_percent_at_once_whatever_its_strategy():
    desired = ledger(replace(ONE, strategy=CANARY), event(1, STARTED), event(1, LOADED), event(1, PROBED))
    (step,) = steps_of(desired, settled(desired, world(node((ONE, LoadState.READY)))))
    assert isinstance(step, Record)
    assert step.data["percent"] == 100.0


def test_live_is_recorded_only_when_the_gateway_has_the_routes():
    desired = ledger(ONE, *live(1)[:-1])
    observed = world(node((ONE, LoadState.READY)))
    first, second = steps_of(desired, observed)
    assert isinstance(first, ApplyRoutes)
    assert isinstance(second, Wait)
    assert steps_of(desired, settled(desired, observed)) == [Record(release_id=1, kind=EventKind.LIVE)]


def test_a_canary_starts_with_its_first_share_and_notes_the_counters():
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED)
    counters = {1: ReleaseCounters(num_requests=7)}
    (step,) = steps_of(desired, settled(desired, world(READY_BOTH), counters=counters))
    assert isinstance(step, Record)
    assert (step.data["step"], step.data["percent"]) == (0, 10.0)
    assert step.data["counters"]["1"]["num_requests"] == 7


def canary_world(outcome: Outcome | None, desired, **gateway) -> Observed:
    verdicts = {2: Verdict(outcome, ("a reason with 3 numbers",))} if outcome else {}
    return settled(desired, world(READY_BOTH, verdicts=verdicts), **gateway)


@pytest.mark.parametrize(
    ("outcome", "seconds", "kind"),
    [
        (Outcome.FAIL, 0, EventKind.ABORTED),
        (Outcome.PASS, 6, EventKind.JUDGED),
        (Outcome.INCONCLUSIVE, 6, EventKind.HELD),
        (Outcome.ERROR, 6, EventKind.HELD),
        (None, 6, EventKind.HELD),
        (Outcome.INCONCLUSIVE, 36, EventKind.ABORTED),
        (None, 36, EventKind.ABORTED),
    ],
)
def test_a_canary_step_ends_by_its_verdict(outcome, seconds, kind):
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED, TEN_PERCENT)
    (step,) = steps_of(desired, canary_world(outcome, desired), later(seconds))
    assert isinstance(step, Record)
    assert step.kind is kind


@pytest.mark.parametrize("outcome", [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.ERROR, None])
def test_a_canary_step_lasts_its_time_unless_it_fails(outcome):
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED, TEN_PERCENT)
    assert [type(step) for step in steps_of(desired, canary_world(outcome, desired), later(4))] == [Wait]


def test_after_a_passed_step_the_next_share_is_recorded():
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED, TEN_PERCENT, event(2, EventKind.JUDGED, at=later(6), step=0))
    (step,) = steps_of(desired, canary_world(Outcome.PASS, desired), later(7))
    assert isinstance(step, Record)
    assert (step.kind, step.data["percent"]) == (EventKind.WEIGHTED, 50.0)


def test_a_gateway_that_lost_its_counters_starts_the_window_anew():
    weighted = replace(TEN_PERCENT, data={**TEN_PERCENT.data, "counters": {"1": ReleaseCounters(num_requests=100).to_json()}})
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED, weighted)
    (step,) = steps_of(desired, canary_world(Outcome.PASS, desired), later(6))
    assert isinstance(step, Record)
    assert (step.kind, step.data["percent"]) == (EventKind.WEIGHTED, 10.0)


def test_a_candidate_that_stops_being_ready_loses_its_share_at_once():
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED, TEN_PERCENT)
    observed = world(node((ONE, LoadState.READY), (TWO, LoadState.LOADING)))
    (route,) = wanted_table(desired, observed, NOW, POLICY).channels
    assert (route.live, route.candidate, route.candidate_percent) == (1, None, 0.0)


def test_a_candidate_whose_workers_die_is_aborted_with_the_engines_words():
    desired = ledger(ONE, live(1), TWO, UP_TO_PROBED, TEN_PERCENT)
    observed = settled(desired, world(node((ONE, LoadState.READY), (TWO, LoadState.FAILED), detail="ValueError: bad file")))
    (step,) = steps_of(desired, observed)
    assert step == Record(release_id=2, kind=EventKind.ABORTED, data={"reason": "workers died on node-0: ValueError: bad file"})


@pytest.mark.parametrize(("candidate", "aborts"), [(TWO, True), (rollback(2, 2), False)])
def test_a_promotion_gives_up_loading_in_the_end_and_a_rollback_does_not(candidate, aborts):
    desired = ledger(ONE, live(1), candidate, event(2, STARTED))
    observed = settled(desired, world(node((ONE, LoadState.READY), (TWO, LoadState.LOADING))))
    (step,) = steps_of(desired, observed, later(61))
    assert isinstance(step, Record if aborts else Wait)


def test_what_an_earlier_attempt_left_failed_is_taken_away_before_the_next():
    desired = ledger(ONE, live(1), TWO)
    observed = settled(desired, world(node((ONE, LoadState.READY), (TWO, LoadState.FAILED))))
    assert steps_of(desired, observed) == [Unload(node="node-0", model="digits", engine_version=TWO.engine_version)]


def test_a_warm_rollback_is_one_route_write():
    back = rollback(3, 1)
    desired = ledger(ONE, live(1), TWO, live(2), back)
    observed = settled(desired, world(READY_BOTH))
    (started,) = steps_of(desired, observed)
    assert started == Record(release_id=3, kind=STARTED, data={"warm": True})
    desired = ledger(ONE, live(1), TWO, live(2), back, event(3, STARTED, warm=True))
    (weighted,) = steps_of(desired, observed)
    assert isinstance(weighted, Record)
    assert weighted.data["percent"] == 100.0


def test_a_cold_rollback_is_probed_like_a_promotion():
    desired = ledger(ONE, live(1), TWO, live(2), rollback(3, 1), event(3, STARTED, warm=False), event(3, LOADED))
    observed = settled(desired, world(READY_BOTH))
    assert steps_of(desired, observed) == [Probe(release_id=3, nodes=("node-0",))]


def test_the_live_release_is_repaired_before_anything_else():
    desired = ledger(ONE, live(1), TWO)
    steps = steps_of(desired, world(node()))
    assert steps[0] == StoreArchive(node="node-0", release_id=1, archive=ONE.archive, sha256=ONE.archive_sha256)


def test_live_workers_that_died_for_good_are_loaded_anew():
    desired = ledger(ONE, live(1))
    observed = settled(desired, world(node((ONE, LoadState.FAILED))))
    assert steps_of(desired, observed) == [Unload(node="node-0", model="digits", engine_version=ONE.engine_version)]


def test_the_rollback_target_is_kept_loaded():
    desired = ledger(ONE, live(1), TWO, live(2))
    observed = settled(desired, world(node((TWO, LoadState.READY))))
    assert [type(step) for step in steps_of(desired, observed)] == [StoreArchive]


def test_a_retired_release_is_unloaded_after_grace_and_drain():
    three = release(3, 3)
    desired = ledger(ONE, live(1), TWO, live(2), three, live(3))
    on_node = node((ONE, LoadState.READY), (TWO, LoadState.READY), (three, LoadState.READY))
    has_clusters = world(on_node, gateway=GatewayState(reachable=True, active={1: 0, 2: 0, 3: 0}))
    in_grace = wanted_table(desired, has_clusters, later(1), POLICY)
    after = wanted_table(desired, has_clusters, later(3), POLICY)
    busy = replace(has_clusters, gateway=GatewayState(reachable=True, active={1: 4, 2: 0, 3: 0}))
    assert [backend.release_id for backend in in_grace.backends] == [1, 2, 3]
    assert [backend.release_id for backend in after.backends] == [2, 3]
    assert [backend.release_id for backend in wanted_table(desired, busy, later(600), POLICY).backends] == [1, 2, 3]
    gone = replace(has_clusters, gateway=GatewayState(reachable=True, digest=after.digest, active={2: 0, 3: 0}))
    assert steps_of(desired, gone, later(3)) == [Unload(node="node-0", model="digits", engine_version=ONE.engine_version)]


def test_the_old_live_release_keeps_its_cluster_until_the_new_one_is_live():
    desired = ledger(ONE, live(1), TWO, live(2)[:-1])
    observed = world(READY_BOTH, gateway=GatewayState(reachable=True, active={1: 0, 2: 0}))
    table = wanted_table(desired, observed, later(600), POLICY)
    assert [backend.release_id for backend in table.backends] == [1, 2]
    assert [(route.live, route.candidate) for route in table.channels] == [(2, None)]


@pytest.mark.parametrize("gateway", [GatewayState(reachable=False), GatewayState(reachable=True, digest="another table")])
def test_nothing_is_unloaded_while_the_gateway_may_still_route_to_it(gateway):
    desired = ledger(ONE, live(1))
    observed = world(node((ONE, LoadState.READY), (TWO, LoadState.READY)), gateway=gateway)
    assert not [step for step in steps_of(desired, observed) if isinstance(step, Unload)]


def test_an_unreachable_gateway_is_left_alone_and_holds_a_release():
    desired = ledger(ONE, *live(1)[:-1])
    observed = world(node((ONE, LoadState.READY)), gateway=GatewayState(reachable=False))
    assert steps_of(desired, observed) == [Wait(release_id=1, reason="the gateway is down")]


def test_two_models_do_not_wait_for_each_other():
    other = release(2, 1, model="faces")
    desired = ledger(ONE, event(1, STARTED), other, event(2, STARTED))
    observed = settled(desired, world(node((ONE, LoadState.LOADING), (other, LoadState.REGISTERED))))
    assert [type(step) for step in steps_of(desired, observed)] == [Wait, Scale]
