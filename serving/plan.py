"""The centre of Modelway: what to do next, as a pure function of what should be, what is, and the time.

`plan` never acts and never remembers. The controller applies one step of its answer and asks again, so a crash
anywhere needs no recovery: the next look continues. What keeps clients safe:

- live releases are repaired before anything new is tried;
- a candidate gets traffic only when it is READY and probed on every node that is up, and loses it when it no longer is;
- traffic moves by one route table at a time, and an event says which table is wanted before it is applied;
- an archive is unloaded only when the gateway has a table without it and no request in flight to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from registry.release import ChannelState, Event, EventKind, LedgerState, Release, ReleaseKind, ReleaseRecord
from registry.verdict import Outcome, ReleaseCounters, Verdict
from serving.ports import GatewayState, Judge, LoadState, NodeState, sockets_of
from serving.routes import Backend, ChannelRoute, RouteTable
from serving.steps import ApplyRoutes, Probe, Record, Register, Scale, Step, StoreArchive, Unload, Wait

_SERVING = (LoadState.READY, LoadState.DEGRADED)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanPolicy:
    """The planner's numbers.

    Attributes:
        num_workers: Workers of each archive on each node, where its release does not say how many.
        load_timeout_s: Seconds from STARTED to READY on every node before a candidate is aborted.
        drain_grace_s: Seconds that a release keeps its cluster and workers after its last route was taken away.
    """

    num_workers: int = 1
    load_timeout_s: float = 120.0
    drain_grace_s: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What nodes and gateway do now.

    Attributes:
        nodes: Node name -> its state; every node of the settings is here, reachable or not.
        sockets: Node name -> path of its inference socket.
        verdicts: Release id -> verdict over the window of its present canary step.
    """

    nodes: Mapping[str, NodeState]
    sockets: Mapping[str, str]
    gateway: GatewayState
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at the world."""

    observed: Observed
    now: datetime
    policy: PlanPolicy

    def serving_nodes(self, release: Release) -> tuple[str, ...]:
        """Nodes that answer requests for the release's archive."""
        return tuple(name for name in self.nodes_up() if self.observed.nodes[name].state_of(release) in _SERVING)

    def answering_nodes(self, release: Release) -> tuple[str, ...]:
        """Nodes whose workers may answer for the release's archive: those of a node that is silent may well do."""
        nodes = sorted(self.observed.nodes.items())
        return tuple(name for name, node in nodes if not node.reachable or node.state_of(release) in _SERVING)

    def nodes_up(self) -> tuple[str, ...]:
        """Nodes that answer at all, in order."""
        return tuple(name for name, node in sorted(self.observed.nodes.items()) if node.reachable)


def plan(desired: LedgerState, observed: Observed, now: datetime, policy: PlanPolicy) -> tuple[Step, ...]:
    """The steps that can be taken now, most urgent first; empty when everything is as it should be.

    Steps of different channels do not depend on each other; of one channel only the first is listed, since what
    comes behind it depends on how it goes. `serving.preview` strings the steps together.
    """
    look = _Look(observed, now, policy)
    channels = [desired[key] for key in sorted(desired)]
    table = _wanted_table(channels, look)
    steps: list[Step] = []
    for channel in channels:
        if channel.live is not None:
            steps += _load(channel.live.release, look, reload_failed=True)
    if observed.gateway.reachable and observed.gateway.digest != table.digest:
        steps.append(ApplyRoutes(table=table))
    for channel in channels:
        if channel.candidate is not None:
            steps += _advance(channel, channel.candidate, table, look)
    for channel in channels:
        if channel.rollback_target is not None:
            steps += _load(channel.rollback_target.release, look, reload_failed=False)
    steps += _unload(channels, table, look.observed)
    return tuple(steps)


# --- routes


def wanted_table(desired: LedgerState, observed: Observed, now: datetime, policy: PlanPolicy) -> RouteTable:
    """The route table that the ledger asks for, as far as nodes can serve it."""
    return _wanted_table([desired[key] for key in sorted(desired)], _Look(observed, now, policy))


def _wanted_table(channels: list[ChannelState], look: _Look) -> RouteTable:
    backends: dict[int, Backend] = {}
    routes: list[ChannelRoute] = []
    for channel in channels:
        route = _channel_route(channel, look)
        if route is not None:
            routes.append(route)
        for record in channel.records:
            if _keeps_backend(channel, record, route, look):
                backends[record.release.id] = _backend(record.release, look)
    return RouteTable(backends=tuple(backends[key] for key in sorted(backends)), channels=tuple(routes))


def _channel_route(channel: ChannelState, look: _Look) -> ChannelRoute | None:
    live, candidate = channel.live, channel.candidate
    percent = _share(candidate, look) if candidate is not None else 0.0
    if candidate is not None and percent >= 100:
        return ChannelRoute(model=channel.model, channel=channel.channel, live=candidate.release.id)
    if live is None:
        return None
    return ChannelRoute(
        model=channel.model,
        channel=channel.channel,
        live=live.release.id,
        candidate=candidate.release.id if candidate is not None and percent > 0 else None,
        candidate_percent=percent,
    )


def _share(candidate: ReleaseRecord, look: _Look) -> float:
    """The candidate's share in percent: what was last recorded, and nothing while no node serves it."""
    weighted = candidate.last(EventKind.WEIGHTED)
    return float(weighted.data["percent"]) if weighted is not None and look.serving_nodes(candidate.release) else 0.0


def _keeps_backend(channel: ChannelState, record: ReleaseRecord, route: ChannelRoute | None, look: _Look) -> bool:
    release, active = record.release, look.observed.gateway.active
    if route is not None and release.id in (route.live, route.candidate):
        return True
    target = channel.rollback_target
    if target is not None and target.release.id == release.id:
        return bool(look.serving_nodes(release))
    if release.id not in active:
        return False  # the gateway has no cluster of it, so there is nothing to drain
    if active[release.id] > 0 or record is channel.candidate or record is channel.live:
        return True
    return look.now - _last_routed(channel, record) < timedelta(seconds=look.policy.drain_grace_s)


def _last_routed(channel: ChannelState, record: ReleaseRecord) -> datetime:
    """When the release lost its last route, at the latest."""
    times = [event.at for other in channel.records for event in other.events if event.kind in (EventKind.LIVE, EventKind.ABORTED)]
    newer = [other.release.created_at for other in channel.records if other.release.id > record.release.id]
    return max([record.release.created_at, *times, *newer])


def _backend(release: Release, look: _Look) -> Backend:
    nodes = look.serving_nodes(release) or tuple(sorted(look.observed.sockets))
    return Backend(
        release_id=release.id,
        model=release.model,
        version=release.version,
        variant=release.variant,
        engine_version=release.engine_version,
        signature=release.signature,
        sockets=tuple(look.observed.sockets[node] for node in nodes),
        worker_sockets=tuple(
            socket for node in look.answering_nodes(release) for socket in sockets_of(release, look.observed.nodes[node].worker_sockets)
        ),
    )


# --- loading


def _load(release: Release, look: _Look, *, reload_failed: bool) -> Iterator[Step]:
    """On each node that is up, the next step towards READY."""
    for name in look.nodes_up():
        node = look.observed.nodes[name]
        state = node.state_of(release)
        if state is None and release.archive not in node.stored:
            yield StoreArchive(node=name, release_id=release.id, archive=release.archive, sha256=release.archive_sha256)
        elif state is None:
            yield Register(node=name, archive=release.archive)
        elif state is LoadState.REGISTERED:
            num_workers = release.num_workers or look.policy.num_workers
            yield Scale(node=name, model=release.model, engine_version=release.engine_version, num_workers=num_workers)
        elif state is LoadState.FAILED and reload_failed:
            yield Unload(node=name, model=release.model, engine_version=release.engine_version)


def _unload(channels: list[ChannelState], table: RouteTable, observed: Observed) -> Iterator[Step]:
    """Archives that neither a route, a cluster, a candidate nor a rollback needs; nothing while the gateway is unknown."""
    if not observed.gateway.reachable or observed.gateway.digest != table.digest:
        return
    needed = {(backend.model, backend.engine_version) for backend in table.backends}
    for channel in channels:
        for record in (channel.live, channel.candidate, channel.rollback_target):
            if record is not None:
                needed.add((record.release.model, record.release.engine_version))
    for name, node in sorted(observed.nodes.items()):
        for model, engine_version in sorted(set(node.archives) - needed):
            yield Unload(node=name, model=model, engine_version=engine_version)


# --- the way of a candidate


def _advance(channel: ChannelState, candidate: ReleaseRecord, table: RouteTable, look: _Look) -> Iterator[Step]:
    release, started = candidate.release, candidate.last(EventKind.STARTED)
    up, serving = look.nodes_up(), look.serving_nodes(candidate.release)
    if started is None:
        yield _start(release, look)
        return
    trouble = _load_trouble(candidate, look.now - started.at, look)
    if trouble:
        yield _abort(release, trouble)
        return
    pending = list(_load(release, look, reload_failed=False))
    if pending:
        yield pending[0]
    elif not up or serving != up:
        loading = [name for name in up if name not in serving]
        where = f"workers of {release.model_version} start on {', '.join(loading)}" if loading else "no node is up"
        yield Wait(release_id=release.id, reason=where)
    elif _is_warm_rollback(candidate) or candidate.last(EventKind.PROBED) is not None:
        yield _shift_traffic(channel, candidate, table, look)
    elif candidate.last(EventKind.LOADED) is None:
        yield Record(release_id=release.id, kind=EventKind.LOADED, data={"nodes": list(up)})
    else:
        yield Probe(release_id=release.id, nodes=up)


def _start(release: Release, look: _Look) -> Step:
    """Take the release up; what an earlier attempt left FAILED is taken away first, so that this one is judged by itself."""
    leftover = next((step for step in _load(release, look, reload_failed=True) if isinstance(step, Unload)), None)
    warm = bool(look.nodes_up()) and look.serving_nodes(release) == look.nodes_up()
    return leftover or Record(release_id=release.id, kind=EventKind.STARTED, data={"warm": warm})


def _is_warm_rollback(candidate: ReleaseRecord) -> bool:
    """A rollback to an archive that never stopped serving needs no second proof: it is one route write."""
    started = candidate.last(EventKind.STARTED)
    return candidate.release.kind is ReleaseKind.ROLLBACK and started is not None and bool(started.data.get("warm"))


def _load_trouble(candidate: ReleaseRecord, waited: timedelta, look: _Look) -> str:
    """Why the candidate will not be READY; empty while it still may."""
    release, limit_s = candidate.release, look.policy.load_timeout_s
    for name, node in sorted(look.observed.nodes.items()):
        if node.state_of(release) is LoadState.FAILED:
            detail = node.archives[release.model, release.engine_version].detail
            return f"workers died on {name}: {detail or 'no reason given'}"
    if release.kind is ReleaseKind.ROLLBACK or candidate.last(EventKind.LOADED) is not None:
        return ""  # nobody wants a rollback to give up because a node is slow to come back
    return f"not READY after {waited.total_seconds():.0f} s (limit {limit_s:g} s)" if waited.total_seconds() > limit_s else ""


def _shift_traffic(channel: ChannelState, candidate: ReleaseRecord, table: RouteTable, look: _Look) -> Step:
    release, gateway = candidate.release, look.observed.gateway
    shares = _shares(channel, release)
    weighted = candidate.last(EventKind.WEIGHTED)
    if weighted is None:
        return _weigh(channel, candidate, 0, shares[0], gateway)
    if not gateway.reachable:
        return Wait(release_id=release.id, reason="the gateway is down")
    if gateway.digest != table.digest:
        return Wait(release_id=release.id, reason="the gateway takes the routes")
    if float(weighted.data["percent"]) >= 100:
        return Record(release_id=release.id, kind=EventKind.LIVE)
    return _judge_step(channel, candidate, weighted, shares, look)


def _judge_step(channel: ChannelState, candidate: ReleaseRecord, weighted: Event, shares: tuple[float, ...], look: _Look) -> Step:
    release, gateway, step = candidate.release, look.observed.gateway, int(weighted.data["step"])
    if canary_window(channel, candidate, gateway) is None:
        return _weigh(channel, candidate, step, shares[step], gateway)  # counters were reset: the window starts anew
    verdict = look.observed.verdicts.get(release.id, Verdict(Outcome.ERROR, ("no verdict was made",)))
    if verdict.outcome is Outcome.FAIL:
        return _abort(release, "; ".join(verdict.reasons), verdict)
    end = weighted.at + timedelta(seconds=release.strategy.steps[step].duration_s)
    if look.now < end:
        return Wait(release_id=release.id, reason=f"{shares[step]:g}% for {(end - look.now).total_seconds():.0f} s more")
    if verdict.outcome is not Outcome.PASS:
        return _hold(candidate, weighted, verdict, look.now - end)
    if not candidate.happened_since(EventKind.JUDGED, weighted):
        return Record(release_id=release.id, kind=EventKind.JUDGED, data={"step": step, "verdict": verdict.to_json()})
    return _weigh(channel, candidate, step + 1, shares[step + 1], gateway)


def _hold(candidate: ReleaseRecord, weighted: Event, verdict: Verdict, waited: timedelta) -> Step:
    release = candidate.release
    missing = "; ".join(verdict.reasons)
    if waited > timedelta(seconds=release.strategy.hold_s):
        return _abort(release, f"no verdict within {release.strategy.hold_s:g} s: {missing}", verdict)
    if not candidate.happened_since(EventKind.HELD, weighted):
        return Record(release_id=release.id, kind=EventKind.HELD, data={"verdict": verdict.to_json()})
    return Wait(release_id=release.id, reason=f"held, {verdict.outcome}: {missing}")


def _shares(channel: ChannelState, release: Release) -> tuple[float, ...]:
    """Percentages in order, ending with 100. With nothing live, or the same archive live, there is nothing to compare."""
    if channel.live is None or channel.live.release.archive == release.archive:
        return (100.0,)
    return (*(step.percent for step in release.strategy.steps), 100.0)


def _weigh(channel: ChannelState, candidate: ReleaseRecord, step: int, percent: float, gateway: GatewayState) -> Record:
    ids = [record.release.id for record in (channel.live, candidate) if record is not None]
    counters = {str(release_id): gateway.counters.get(release_id, ReleaseCounters()).to_json() for release_id in ids}
    data = {"step": step, "percent": percent, "counters": counters}
    return Record(release_id=candidate.release.id, kind=EventKind.WEIGHTED, data=data)


def _abort(release: Release, reason: str, verdict: Verdict | None = None) -> Record:
    data = {"reason": reason, **({"verdict": verdict.to_json()} if verdict else {})}
    return Record(release_id=release.id, kind=EventKind.ABORTED, data=data)


# --- what the measurements say


def canary_window(channel: ChannelState, candidate: ReleaseRecord, gateway: GatewayState) -> tuple[ReleaseCounters, ReleaseCounters] | None:
    """Candidate's and live's counters since the present step began; None if a counter was reset since."""
    weighted = candidate.last(EventKind.WEIGHTED)
    assert weighted is not None
    assert channel.live is not None
    window = []
    for release_id in (candidate.release.id, channel.live.release.id):
        start = ReleaseCounters.from_json(weighted.data["counters"].get(str(release_id), ReleaseCounters().to_json()))
        window.append(gateway.counters.get(release_id, ReleaseCounters()).since(start))
    candidate_counters, live_counters = window
    return (candidate_counters, live_counters) if candidate_counters is not None and live_counters is not None else None


def canary_verdicts(desired: LedgerState, gateway: GatewayState, judge: Judge) -> dict[int, Verdict]:
    """The verdict of each candidate that has a share of the traffic."""
    verdicts = {}
    for channel in desired.values():
        candidate = channel.candidate
        if channel.live is None or candidate is None or candidate.last(EventKind.WEIGHTED) is None:
            continue
        window = canary_window(channel, candidate, gateway)
        if window is not None:
            verdicts[candidate.release.id] = judge(*window, candidate.release.strategy)
    return verdicts
