"""What the controller would do if every step went well: the planner run against a world that obeys.

Used by `--dry-run`, and by the property tests, which start it from arbitrary worlds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from registry.release import Event, EventKind, LedgerState, Release, fold
from registry.verdict import Outcome, ReleaseCounters, Verdict
from serving.plan import Observed, PlanPolicy, plan
from serving.ports import LoadedArchive, LoadState
from serving.steps import ApplyRoutes, Probe, Record, Register, Scale, Step, StoreArchive, Unload, Wait

_MAX_STEPS = 1000
_TICK = timedelta(seconds=1)
_PASS = Verdict(Outcome.PASS, ("assumed by the preview",))


def preview(desired: LedgerState, observed: Observed, now: datetime, policy: PlanPolicy) -> Iterator[Step]:
    """Yield each step up to the state in which there is nothing left to do.

    A `Wait` is yielded once per reason and costs a second of the preview's own time.
    """
    last_wait = ""
    for _ in range(_MAX_STEPS):
        steps = plan(desired, observed, now, policy)
        step = next((step for step in steps if not isinstance(step, Wait)), None)
        if step is None:
            pending = next((step for step in steps if isinstance(step, Wait)), None)
            if pending is None and not _draining(observed, now, policy, desired):
                return
            if pending is not None and pending.reason.split(" for ")[0] != last_wait:
                last_wait = pending.reason.split(" for ")[0]
                yield pending
            now += _TICK
            observed = replace(observed, verdicts=dict.fromkeys(_candidates(desired), _PASS))
            continue
        yield step
        desired, observed = obey(step, desired, observed, now)
    raise AssertionError("the plan does not converge")


def _candidates(desired: LedgerState) -> list[int]:
    return [channel.candidate.release.id for channel in desired.values() if channel.candidate is not None]


def _draining(observed: Observed, now: datetime, policy: PlanPolicy, desired: LedgerState) -> bool:
    """Whether time alone will bring a further step: a cluster whose grace is not over."""
    later = now + timedelta(seconds=policy.drain_grace_s + 1)
    return any(not isinstance(step, Wait) for step in plan(desired, observed, later, policy))


def obey(step: Step, desired: LedgerState, observed: Observed, now: datetime) -> tuple[LedgerState, Observed]:
    """Ledger and world after the step, when it goes well."""
    if isinstance(step, StoreArchive):
        node = observed.nodes[step.node]
        return desired, _with_node(observed, step.node, stored=node.stored | {step.archive})
    if isinstance(step, Register):
        release = _release_of(step.archive, desired)
        return desired, _with_state(observed, step.node, release.model, release.engine_version, LoadState.REGISTERED)
    if isinstance(step, Scale):
        return desired, _with_state(observed, step.node, step.model, step.engine_version, LoadState.READY)
    if isinstance(step, Unload):
        archives = dict(observed.nodes[step.node].archives)
        archives.pop((step.model, step.engine_version))
        stored = observed.nodes[step.node].stored - {f"{step.model}-{step.engine_version}.mar"}
        return desired, _with_node(observed, step.node, archives=archives, stored=stored)
    if isinstance(step, Probe):
        return fold([Event(release_id=step.release_id, kind=EventKind.PROBED, at=now)], desired), observed
    if isinstance(step, Record):
        return fold([Event(release_id=step.release_id, kind=step.kind, at=now, data=step.data)], desired), observed
    if isinstance(step, ApplyRoutes):
        active = {backend.release_id: 0 for backend in step.table.backends}
        counters = {release_id: observed.gateway.counters.get(release_id, ReleaseCounters()) for release_id in active}
        return desired, replace(observed, gateway=replace(observed.gateway, digest=step.table.digest, active=active, counters=counters))
    return desired, observed


def _release_of(archive: str, desired: LedgerState) -> Release:
    return next(record.release for channel in desired.values() for record in channel.records if record.release.archive == archive)


def _with_node(observed: Observed, name: str, **changes: Any) -> Observed:
    return replace(observed, nodes={**observed.nodes, name: replace(observed.nodes[name], **changes)})


def _with_state(observed: Observed, name: str, model: str, engine_version: str, state: LoadState) -> Observed:
    archives: Mapping[tuple[str, str], LoadedArchive] = {
        **observed.nodes[name].archives,
        (model, engine_version): LoadedArchive(model=model, engine_version=engine_version, state=state),
    }
    return _with_node(observed, name, archives=archives)
