"""The loop that makes nodes and gateway match the ledger: observe, plan, apply one step, look again.

It keeps nothing that it could not lose: a new controller that starts from the ledger and a fresh look goes on.
The one exception is comfort, not truth: which step failed a moment ago (so that it does not stop the others) and
golden probes that are under way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from registry.errors import Conflict, Corrupt, ModelwayError, NotFound
from registry.ports import Ledger
from registry.release import Event, EventKind, LedgerState, Release, ReleaseDraft, ReleaseRecord, fold
from registry.view import LedgerView
from serving.archive_cache import ArchiveCache
from serving.plan import Observed, PlanPolicy, canary_verdicts, plan
from serving.ports import Gateway, Judge, ServingEngine
from serving.preview import preview
from serving.probe import ProbeFailed, ask_golden_set
from serving.steps import ApplyRoutes, Probe, Record, Register, Scale, Step, StoreArchive, Unload, Wait

log = logging.getLogger(__name__)

_RETRY_AFTER = timedelta(seconds=2)
_IDLE_S = 1.0
_BUSY_S = 0.2


class ControllerReport(Protocol):
    """What the controller tells about itself. `monitoring` has the real one."""

    def looked(self, desired: LedgerState, observed: Observed, steps: tuple[Step, ...], seconds: float) -> None:
        """After each look: what should be, what is, what is still to do, and how long looking took."""

    def applied(self, step: Step) -> None:
        """A step was applied."""

    def failed(self, step: Step, error: ModelwayError) -> None:
        """A step could not be applied; it is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The last look: what was seen and what was still to do then."""

    at: datetime
    observed: Observed
    steps: tuple[Step, ...]


class Controller:
    """One loop over all models and channels. Only one may run at a time: the ledger's lease sees to that.

    Args:
        archives: Where the archives of releases are on the control plane's disk.
        judge: Says what the counters of a candidate mean.
        clock: Present time in UTC.
        fence: Fencing token of the lease, or None; the ledger refuses events of a controller that lost its lease.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        view: LedgerView,
        archives: ArchiveCache,
        engines: Mapping[str, ServingEngine],
        gateway: Gateway,
        judge: Judge,
        policy: PlanPolicy,
        report: ControllerReport,
        clock: Callable[[], datetime],
        fence: int | None = None,
    ) -> None:
        self._ledger = ledger
        self._view = view
        self._archives = archives
        self._engines = engines
        self._gateway = gateway
        self._judge = judge
        self._policy = policy
        self._report = report
        self._clock = clock
        self._fence = fence
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._last_look: Look | None = None
        self._not_before: dict[Step, datetime] = {}
        self._probes: dict[int, Future[dict[str, float]]] = {}
        self._workers = ThreadPoolExecutor(max_workers=max(4, 2 * len(engines)), thread_name_prefix="controller")

    # --- the loop

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Errors of components are logged and tried again; nothing else is swallowed."""
        while not stop.is_set():
            try:
                acted = self.step()
            except Conflict:
                raise  # another controller holds the lease now
            except ModelwayError as error:
                log.warning("look failed: %s", error)
                acted = False
            if not acted:
                self._wake.wait(self._pause_s())
                self._wake.clear()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def wake(self) -> None:
        """Look again now: something was decided."""
        self._wake.set()

    def _pause_s(self) -> float:
        return _BUSY_S if any(channel.candidate for channel in self._view.state().values()) else _IDLE_S

    def step(self) -> bool:
        """One look and at most one step. Returns whether a step was applied."""
        desired = self._view.state()
        started = self._clock()
        observed = self.observe(desired)
        now = self._clock()
        steps = plan(desired, observed, now, self._policy)
        self._publish(Look(at=now, observed=observed, steps=steps))
        self._report.looked(desired, observed, steps, (now - started).total_seconds())
        for step in steps:
            if isinstance(step, Wait) or now < self._not_before.get(step, now):
                continue
            acted = self._try(step)
            if acted is not False:  # a step that is still under way changed nothing: the next one may go ahead
                return bool(acted)
        return False

    def _try(self, step: Step) -> bool | None:
        """Whether the step was applied; None if it failed and is put off."""
        try:
            acted = self._apply(step)
        except Conflict:
            raise
        except ModelwayError as error:
            log.warning("could not %s: %s", step, error)
            self._not_before = {key: at for key, at in self._not_before.items() if at > self._clock()}
            self._not_before[step] = self._clock() + _RETRY_AFTER
            self._report.failed(step, error)
            return None
        if acted:
            log.info("%s", step)
            self._report.applied(step)
        return acted

    # --- observing

    def observe(self, desired: LedgerState) -> Observed:
        """Nodes and gateway, looked at side by side, and the verdicts that follow from the gateway's counters."""
        nodes = {name: self._workers.submit(engine.observe) for name, engine in self._engines.items()}
        gateway = self._gateway.observe()
        return Observed(
            nodes={name: future.result() for name, future in nodes.items()},
            sockets={name: engine.inference_socket for name, engine in self._engines.items()},
            gateway=gateway,
            verdicts=canary_verdicts(desired, gateway, self._judge),
        )

    @property
    def last_look(self) -> Look | None:
        """The newest look, for status; None before the first."""
        return self._last_look

    def preview(self, draft: ReleaseDraft) -> list[Step]:
        """The steps that a release of that draft would take if every one went well."""
        desired, now = self._view.state(), self._clock()
        channel = desired.get((draft.model, draft.channel))
        newest = max((record.release.id for state in desired.values() for record in state.records), default=0)
        head = channel.head.release.id if channel is not None and channel.head is not None else None
        release = draft.numbered(newest + 1, replaces=head, at=now)
        return list(preview(fold([release], desired), self.observe(desired), now, self._policy))

    def wait_settled(self, model: str, release_id: int, timeout_s: float) -> ReleaseRecord:
        """The record of a release once its roll-out has ended, or after `timeout_s` as it is then. Raises NotFound."""
        with self._changed:
            self._changed.wait_for(lambda: not self._view.record(release_id, model).in_progress, timeout_s)
        return self._view.record(release_id, model)

    def _publish(self, look: Look) -> None:
        with self._changed:
            self._last_look = look
            self._changed.notify_all()

    # --- applying

    def _apply(self, step: Step) -> bool:
        """Apply one step. Returns False if it is still under way."""
        match step:
            case StoreArchive(node=node, release_id=release_id):
                self._store(node, self._view.record(release_id).release)
            case Register(node=node, archive=archive):
                self._engines[node].register(archive)
            case Scale(node=node):
                self._engines[node].scale(step.model, step.engine_version, step.num_workers)
            case Unload(node=node):
                self._engines[node].unregister(step.model, step.engine_version)
            case ApplyRoutes(table=table):
                self._gateway.apply(table)
            case Record():
                self._record(step)
            case Probe():
                return self._probe(step)
            case Wait():
                return False
        return True

    def _store(self, node: str, release: Release) -> None:
        try:
            self._engines[node].store(self._archives.ensure(release), release.archive_sha256)
        except (Corrupt, NotFound) as error:
            self._abort_candidate(release, str(error))
            raise

    def _abort_candidate(self, release: Release, reason: str) -> None:
        """End a candidate that cannot go on; a live release keeps being tried."""
        candidate = self._view.channel(release.model, release.channel).candidate
        if candidate is not None and candidate.release.id == release.id:
            self._record(Record(release_id=release.id, kind=EventKind.ABORTED, data={"reason": reason}))

    def _record(self, step: Record) -> None:
        event = Event(release_id=step.release_id, kind=step.kind, at=self._clock(), data=step.data)
        self._ledger.append_event(event, fence=self._fence)
        with self._changed:
            self._changed.notify_all()

    def _probe(self, step: Probe) -> bool:
        """Start the golden probe in the background, or record its result once it is there.

        In the background, because a model that hangs must not keep anybody from rolling back meanwhile.
        """
        future = self._probes.get(step.release_id)
        if future is None:
            release = self._view.record(step.release_id).release
            engines = {name: self._engines[name] for name in step.nodes}
            self._probes[step.release_id] = self._workers.submit(self._ask_nodes, release, engines)
            return False
        if not future.done():
            return False
        del self._probes[step.release_id]
        try:
            result = Record(release_id=step.release_id, kind=EventKind.PROBED, data={"nodes": future.result()})
        except ProbeFailed as error:
            result = Record(release_id=step.release_id, kind=EventKind.ABORTED, data={"reason": f"golden probe failed: {error}"})
        self._record(result)
        return True

    def _ask_nodes(self, release: Release, engines: Mapping[str, ServingEngine]) -> dict[str, float]:
        archive = self._archives.ensure(release)
        errors = {name: ask_golden_set(engine, release, archive) for name, engine in engines.items()}
        self.wake()
        return errors
