"""Keeping the registry's aliases and the ledger in step, apart from the controller's loop.

Serving never depends on the registry being up, so this loop is a thread of its own: when the registry is away it
tries again later, and an alias that is behind is reconciled when it returns. An alias that somebody moved by hand is
a request: it becomes a release through the same gates, or is put back with the reason on the version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from registry.errors import Conflict, ModelwayError, NotFound, Refused, Unavailable
from registry.names import ModelVersion
from registry.ports import Ledger, ModelRegistry
from registry.release import ChannelState, Event, EventKind, LedgerState, Status
from registry.view import LedgerView
from serving.releases import PromotionRequest, ReleaseService

log = logging.getLogger(__name__)

ACTOR = "registry"
REFUSED_TAG = "modelway.refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAlias:
    """Point the channel's alias to the live version, and say in the ledger that it does."""

    release_id: int
    version: ModelVersion
    channel: str
    because: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteAlias:
    """The alias is right already; say so in the ledger."""

    release_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedByAlias:
    """Somebody moved the alias to another version: a request for a release."""

    version: ModelVersion
    channel: str
    expect: int


AliasAction = SetAlias | NoteAlias | RequestedByAlias


def plan_aliases(desired: LedgerState, aliases: Mapping[str, Mapping[str, int]]) -> tuple[AliasAction, ...]:
    """What to do about the aliases, as a pure function of the ledger and of what the registry has.

    Args:
        aliases: Model -> alias -> version.
    """
    actions = (_plan_alias(channel, aliases.get(model, {}).get(name)) for (model, name), channel in sorted(desired.items()))
    return tuple(action for action in actions if action is not None)


def _plan_alias(channel: ChannelState, alias: int | None) -> AliasAction | None:
    live, head = channel.live, channel.head
    if live is None or head is None or channel.candidate is not None:
        return None  # while a release is on its way the alias waits for how it ends
    release = live.release
    put = SetAlias(release_id=release.id, version=release.model_version, channel=channel.channel)
    if live.last(EventKind.ALIAS_SET) is None:
        return NoteAlias(release_id=release.id) if alias == release.version else put
    if alias == release.version:
        return None
    if alias is None:
        return put
    if head.status is Status.ABORTED and head.release.actor == ACTOR and head.release.version == alias:
        aborted = head.last(EventKind.ABORTED)
        reason = aborted.data.get("reason", "") if aborted is not None else ""
        return SetAlias(release_id=release.id, version=release.model_version, channel=channel.channel, because=str(reason))
    return RequestedByAlias(version=ModelVersion(channel.model, alias), channel=channel.channel, expect=head.release.id)


class AliasReconciler:
    """Applies `plan_aliases` again and again.

    Args:
        on_release: Called when an alias became a release, so that the controller looks at once.
        on_answer: Called after each look with whether the registry answered.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        view: LedgerView,
        registry: ModelRegistry,
        releases: ReleaseService,
        clock: Callable[[], datetime],
        on_release: Callable[[], None],
        on_answer: Callable[[bool], None] = lambda reachable: None,
        fence: int | None = None,
    ) -> None:
        self._ledger = ledger
        self._view = view
        self._registry = registry
        self._releases = releases
        self._clock = clock
        self._on_release = on_release
        self._on_answer = on_answer
        self._fence = fence
        self._wake = threading.Event()
        self.reachable: bool | None = None
        self.aliases: dict[str, dict[str, int]] = {}

    def run(self, stop: threading.Event, interval_s: float) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            try:
                self.step()
            except Conflict:
                raise  # another controller holds the lease now
            except ModelwayError as error:
                log.warning("aliases could not be reconciled: %s", error)
            self._wake.wait(interval_s)
            self._wake.clear()

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    def step(self) -> None:
        """One look at the registry and everything that follows from it. Raises Unavailable."""
        desired = self._view.state()
        try:
            self.aliases = {model: dict(self._registry.aliases(model)) for model in sorted({model for model, _ in desired})}
            self._answered(True)
            for action in plan_aliases(desired, self.aliases):
                self._apply(action)
        except Unavailable:
            self._answered(False)
            raise

    def _answered(self, reachable: bool) -> None:
        self.reachable = reachable
        self._on_answer(reachable)

    def _apply(self, action: AliasAction) -> None:
        match action:
            case NoteAlias(release_id=release_id):
                self._note(release_id, {})
            case SetAlias():
                log.info("alias %s -> %s", action.channel, action.version)
                self._registry.set_alias(action.version, action.channel)
                self._note(action.release_id, {"because": action.because} if action.because else {})
            case RequestedByAlias():
                self._request(action)

    def _note(self, release_id: int, data: Mapping[str, str]) -> None:
        event = Event(release_id=release_id, kind=EventKind.ALIAS_SET, at=self._clock(), data=data)
        self._ledger.append_event(event, fence=self._fence)

    def _request(self, request: RequestedByAlias) -> None:
        reason = f"alias {request.channel} was moved to {request.version} in the registry"
        wanted = PromotionRequest(model_version=request.version, actor=ACTOR, channel=request.channel, reason=reason, expect=request.expect)
        try:
            record, _ = self._releases.decide(self._releases.prepare_promotion(wanted))
        except (Refused, NotFound) as error:
            self._put_back(request, str(error))
        except Conflict:
            return  # somebody else released meanwhile; the next look sees what came of it
        else:
            log.info("%s: release %d", reason, record.release.id)
            self._on_release()

    def _put_back(self, request: RequestedByAlias, why: str) -> None:
        live = self._view.channel(request.version.model, request.channel).live
        assert live is not None
        log.warning("alias %s of %s is put back to %s: %s", request.channel, request.version.model, live.release.model_version, why)
        self._registry.set_tag(request.version, REFUSED_TAG, why[:5000])
        self._registry.set_alias(live.release.model_version, request.channel)
        self._note(live.release.id, {"because": why})
