"""Whatever the ledger asks for and whatever the world is like, the plan leads there, and clients are safe on the way."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from registry.release import EventKind, LedgerState
from registry.verdict import Outcome, Verdict
from serving.plan import Observed, plan, wanted_table
from serving.ports import GatewayState, LoadState
from serving.preview import obey
from serving.routes import RouteTable
from serving.steps import ApplyRoutes, Step, Unload, Wait
from support.worlds import CANARY, NOW, POLICY, event, later, ledger, live, node, release, rollback, world

VERSIONS = (1, 2, 3)
SERVING = (LoadState.READY, LoadState.DEGRADED)


@st.composite
def ledgers(draw: st.DrawFn) -> LedgerState:
    """One to five releases, each of which went live, was aborted, or (the last one) is somewhere on its way."""
    entries: list = []
    was_live: list[int] = []
    for release_id in range(1, draw(st.integers(1, 5)) + 1):
        going_back = bool(was_live) and draw(st.booleans())
        version = draw(st.sampled_from(was_live if going_back else VERSIONS))
        strategy = draw(st.sampled_from([CANARY, release(1, 1).strategy]))
        made = rollback(release_id, version) if going_back else release(release_id, version, strategy=strategy)
        entries.append(made)
        end = draw(st.sampled_from(["live", "aborted", "superseded"]))
        if end == "live":
            entries.append(live(release_id))
            was_live.append(version)
        elif end == "aborted":
            entries.append(event(release_id, EventKind.ABORTED, reason="bad"))
    last = entries[-1]
    if not isinstance(last, tuple) and hasattr(last, "archive"):
        entries.extend(live(last.id)[: draw(st.integers(0, 3))])
    return ledger(*entries)


@st.composite
def worlds(draw: st.DrawFn, desired: LedgerState) -> Observed:
    """One or two nodes, each archive in any state; a gateway with any clusters, with or without our routes."""
    releases = [release(0, version) for version in VERSIONS]
    states = st.sampled_from([None, *LoadState])
    nodes = []
    for _ in range(draw(st.integers(1, 2))):
        loaded = [(r, state) for r in releases if (state := draw(states)) is not None and state is not LoadState.LOADING]
        nodes.append(node(*loaded, reachable=True))
    ids = [record.release.id for channel in desired.values() for record in channel.records]
    clusters = draw(st.sets(st.sampled_from(ids)))
    return world(*nodes, gateway=GatewayState(reachable=True, active=dict.fromkeys(clusters, 0)))


def run(desired: LedgerState, observed: Observed) -> tuple[list[Step], LedgerState, Observed, RouteTable]:
    """Let the world obey until nothing is left to do; check safety after every step."""
    now, applied, table = later(1), [], RouteTable()
    for _ in range(300):
        steps = plan(desired, observed, now, POLICY)
        step = next((s for s in steps if not isinstance(s, Wait)), None)
        if step is None:
            later_steps = plan(desired, observed, later(100_000), POLICY)
            if not steps and not [s for s in later_steps if not isinstance(s, Wait)]:
                return applied, desired, observed, table
            now = later((now - NOW).total_seconds() + 3)
            ids = [channel.candidate.release.id for channel in desired.values() if channel.candidate]
            observed = replace(observed, verdicts=dict.fromkeys(ids, Verdict(Outcome.PASS, ())))
            continue
        check_safe(step, table, desired, observed)
        if isinstance(step, ApplyRoutes):
            table = step.table
        applied.append(step)
        desired, observed = obey(step, desired, observed, now)
    raise AssertionError(f"no end after {len(applied)} steps: {applied[-10:]}")


def check_safe(step: Step, table: RouteTable, desired: LedgerState, observed: Observed) -> None:
    live_ids = {channel.live.release.id for channel in desired.values() if channel.live}
    if isinstance(step, Unload):
        key = (step.model, step.engine_version)
        state = observed.nodes[step.node].archives[key].state
        routed = {(backend.model, backend.engine_version) for backend in table.backends}
        assert state is LoadState.FAILED or key not in routed, f"{step} while the gateway routes to it"
    if isinstance(step, ApplyRoutes):
        for route in step.table.channels:
            for release_id in {route.live, route.candidate} - {None}:
                backend = step.table.backends_by_release()[release_id]
                states = [n.archives.get((backend.model, backend.engine_version)) for n in observed.nodes.values()]
                served = any(s is not None and s.state in SERVING for s in states)
                assert served or release_id in live_ids, f"{step} before release {release_id} is READY"


@given(st.data())
def test_the_plan_converges_and_is_safe(data: st.DataObject):
    desired = data.draw(ledgers())
    observed = data.draw(worlds(desired))
    _, desired, observed, table = run(desired, observed)
    for channel in desired.values():
        assert channel.candidate is None
        needed = [record.release for record in (channel.live, channel.rollback_target) if record is not None]
        for state in observed.nodes.values():
            if channel.live is not None:
                assert state.state_of(channel.live.release) in SERVING
            assert {(r.model, r.engine_version) for r in needed} >= set(state.archives)
        routes = {route.model: route for route in table.channels}
        if channel.live is not None:
            assert (routes["digits"].live, routes["digits"].candidate) == (channel.live.release.id, None)
    assert observed.gateway.digest == wanted_table(desired, observed, later(100_000), POLICY).digest


@given(st.data())
def test_planning_twice_gives_the_same_and_a_converged_world_stays(data: st.DataObject):
    desired = data.draw(ledgers())
    observed = data.draw(worlds(desired))
    assert plan(desired, observed, NOW, POLICY) == plan(desired, observed, NOW, POLICY)
    _, desired, observed, _ = run(desired, observed)
    assert run(desired, observed)[0] == []
