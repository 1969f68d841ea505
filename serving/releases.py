"""How a release is decided: the gates in front of the ledger. Nothing here touches a node or the gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime

from registry.errors import Conflict, NotFound, Refused
from registry.gates import check_promotion
from registry.names import PRODUCTION, ModelVersion
from registry.ports import Ledger
from registry.release import ChannelState, Release, ReleaseDraft, ReleaseKind, ReleaseRecord, Status
from registry.strategy import DEFAULT_CANARY, IMMEDIATE, Strategy, StrategyKind, parse_canary_steps
from registry.view import LedgerView
from serving.archive_cache import ArchiveCache

_ROLLBACK_TRIES = 5
_EVER_LIVE = (Status.LIVE, Status.RETIRED)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionRequest:
    """What a caller asks for.

    Attributes:
        variant: None chooses the fastest variant whose certificate passes.
        strategy: None means `immediate` when nothing is live in the channel, else the default canary.
        expect: The release that the caller believes to be the channel's newest; None takes it as it is now.
    """

    model_version: ModelVersion
    actor: str
    channel: str = PRODUCTION
    variant: str | None = None
    strategy: Strategy | None = None
    reason: str = ""
    expect: int | None = None
    allow_signature_change: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackRequest:
    """What a caller asks for.

    Attributes:
        to: A version that was live in the channel before; None goes back to the previous live one.
        expect: As for a promotion; None tries again when somebody else is faster, because a rollback must win.
    """

    model: str
    actor: str
    channel: str = PRODUCTION
    to: int | None = None
    reason: str = ""
    expect: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A decision that passed its gates and is not in the ledger yet.

    Attributes:
        existing: The release that already does what was asked for; then there is nothing to append.
        expect: The release that the channel's newest must still be.
    """

    draft: ReleaseDraft
    existing: ReleaseRecord | None
    expect: int | None


class ReleaseService:
    """Turns requests into releases."""

    def __init__(self, *, ledger: Ledger, view: LedgerView, archives: ArchiveCache, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._view = view
        self._archives = archives
        self._clock = clock

    def prepare_promotion(self, request: PromotionRequest) -> Prepared:
        """Fetch, check the gates, build the archive.

        Raises:
            NotFound: Unknown model, version or variant.
            Refused: Never exported, a failed certificate, an incompatible signature; with the reasons.
            Conflict: A release is on its way in the channel, or `expect` is not its newest.
            Unavailable: The registry does not answer.
        """
        version = request.model_version
        channel = self._view.channel(version.model, request.channel)
        expect = _check_expect(channel, request.expect)
        built = self._archives.build(version, request.variant)
        draft = ReleaseDraft(
            model=version.model,
            channel=request.channel,
            version=version.version,
            variant=built.variant,
            archive=built.archive.name,
            archive_sha256=built.archive.sha256,
            certificate_sha256=built.certificate_sha256,
            signature=built.signature,
            kind=ReleaseKind.PROMOTION,
            strategy=request.strategy or default_strategy(channel),
            actor=request.actor,
            reason=request.reason,
            options=asdict(built.options),
        )
        existing = _already_promoted(channel, draft)
        if existing is None and channel.candidate is not None:
            raise _in_progress(channel.candidate)
        if existing is None:
            refusals = check_promotion(
                certificate=built.certificate,
                new=built.signature,
                live=channel.live.release.signature if channel.live else None,
                allow_signature_change=request.allow_signature_change,
            )
            if refusals:
                raise Refused(f"{version} ({built.variant}) may not go to {request.channel}", _remedy(refusals), reasons=refusals)
        return Prepared(draft=draft, existing=existing, expect=expect)

    def prepare_rollback(self, request: RollbackRequest) -> Prepared:
        """Find the release to go back to. Needs the ledger alone.

        Raises:
            NotFound: The model was never released, or `to` was never live in the channel.
            Refused: There is no earlier live release.
            Conflict: `expect` is not the channel's newest release.
        """
        self._view.releases_of(request.model)
        channel = self._view.channel(request.model, request.channel)
        expect = _check_expect(channel, request.expect)
        draft = rollback_target(channel, request.to).release.draft_rollback(actor=request.actor, reason=request.reason)
        return Prepared(draft=draft, existing=_already_promoted(channel, draft), expect=expect)

    def decide(self, prepared: Prepared) -> tuple[ReleaseRecord, bool]:
        """Append the release; the record and whether it is new. Raises Conflict."""
        if prepared.existing is not None:
            return prepared.existing, False
        release = self._ledger.append_release(prepared.draft, expect=prepared.expect, at=self._clock())
        return self._view.record(release.id), True

    def rollback(self, request: RollbackRequest) -> tuple[ReleaseRecord, bool]:
        """Prepare and decide, again when somebody else was faster and the caller named no release."""
        for _ in range(_ROLLBACK_TRIES - 1):
            try:
                return self.decide(self.prepare_rollback(request))
            except Conflict:
                if request.expect is not None:
                    raise
        return self.decide(self.prepare_rollback(request))


def default_strategy(channel: ChannelState) -> Strategy:
    """A canary where there is something to compare with, otherwise at once."""
    if channel.live is None:
        return IMMEDIATE
    return Strategy(kind=StrategyKind.CANARY, steps=parse_canary_steps(DEFAULT_CANARY))


def rollback_target(channel: ChannelState, to: int | None) -> ReleaseRecord:
    """The release that a rollback goes back to.

    With a candidate on its way, going back means the live release; else the one before it.

    Raises:
        NotFound: `to` was never live in the channel.
        Refused: There is nothing to go back to.
    """
    if to is not None:
        was_live = [record for record in channel.records if record.status in _EVER_LIVE]
        for record in reversed(was_live):
            if record.release.version == to:
                return record
        versions = sorted({record.release.version for record in was_live})
        raise NotFound(
            f"{channel.model}/{to} was never live in {channel.channel}",
            f"Versions that were: {', '.join(map(str, versions)) or 'none'}.",
        )
    target = channel.live if channel.candidate is not None else channel.rollback_target
    if target is None:
        raise Refused(
            f"{channel.model} has no earlier live release in {channel.channel}",
            f"`modelway history {channel.model}` lists its releases; choose one that was live with --to VERSION, or promote a version.",
        )
    return target


def _check_expect(channel: ChannelState, expect: int | None) -> int | None:
    newest = channel.head.release.id if channel.head else None
    if expect is not None and expect != newest:
        raise Conflict(
            f"release {expect} is not the newest of {channel.model} in {channel.channel} (it is {newest})",
            f"Look at `modelway history {channel.model}` and decide again.",
        )
    return newest


def _already_promoted(channel: ChannelState, draft: ReleaseDraft) -> ReleaseRecord | None:
    current = channel.candidate or channel.live
    return current if current is not None and current.release.archive == draft.archive else None


def _in_progress(candidate: ReleaseRecord) -> Conflict:
    release: Release = candidate.release
    return Conflict(
        f"release {release.id} ({release.model_version}, by {release.actor}) is on its way to {release.channel}",
        f"Wait for it, or stop it with `modelway rollback {release.model} --channel {release.channel}`.",
    )


def _remedy(refusals: tuple[str, ...]) -> str:
    if any("signature" in reason for reason in refusals):
        return "Use --allow-signature-change if every client of the channel can cope."
    return "Train or export again, or choose another variant with --variant."
