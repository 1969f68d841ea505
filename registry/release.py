"""Releases and what the ledger's entries add up to.

A release is one numbered, immutable decision: channel C of model M serves version V as variant X. What happens
to it is recorded as events. `fold` turns the entries into the state of each channel; it is pure, so the ledger
is the only state there is.

    release 1 (digits/1)  started loaded probed weighted(100) live
    release 2 (digits/2)  started loaded probed weighted(10) weighted(50) weighted(100) live
    release 3 (digits/1, a rollback)  started weighted(100) live
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from registry.names import ModelVersion
from registry.signature import Signature
from registry.strategy import IMMEDIATE, Strategy


class ReleaseKind(StrEnum):
    """Why a release was made."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"


class EventKind(StrEnum):
    """What can happen to a release, in the order in which it does.

    LIVE, ABORTED end a release's roll-out; ALIAS_SET may come later, when the registry was down.
    """

    STARTED = "started"  # the controller took it up
    LOADED = "loaded"  # every node has it READY
    PROBED = "probed"  # the golden set was asked on every node: {"nodes": {name: max_abs_error}}
    WEIGHTED = "weighted"  # {"step": int, "percent": float, "counters": {release id: ReleaseCounters}}
    HELD = "held"  # a verdict could not be reached yet: {"verdict": ...}
    JUDGED = "judged"  # a verdict ended a step: {"step": int, "verdict": ...}
    LIVE = "live"  # the gateway sends it all of the channel's traffic
    ABORTED = "aborted"  # it never gets (or no longer gets) traffic: {"reason": str}
    ALIAS_SET = "alias_set"  # the registry's alias points to its version


class Status(StrEnum):
    """Where a release stands."""

    PENDING = "pending"
    PROGRESSING = "progressing"
    LIVE = "live"
    RETIRED = "retired"  # was live, another release is now
    ABORTED = "aborted"
    SUPERSEDED = "superseded"  # replaced before it was live


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseDraft:
    """All of a release except what the ledger gives it: its number, its time, what it replaces.

    Attributes:
        archive: File name of the archive; it carries the first 12 hex digits of the digest of the archive's own manifest,
            which has the digest of every file in it.
        archive_sha256: Digest of the archive file, 64 hex digits.
        certificate_sha256: Digest of the certificate that the gate read, 64 hex digits.
        options: The runtime options that the archive was built with, as its manifest has them, so that the very same one can be
            built again after a tuning or a change of settings; None for a release that was made before they were recorded.
    """

    model: str
    channel: str
    version: int
    variant: str
    archive: str
    archive_sha256: str
    certificate_sha256: str
    signature: Signature
    kind: ReleaseKind
    strategy: Strategy
    actor: str
    reason: str
    options: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def num_workers(self) -> int | None:
        """Workers that it wants on each node; None leaves it to the platform's setting."""
        return int((self.options or {}).get("num_workers", 0)) or None

    @property
    def model_version(self) -> ModelVersion:
        """The version that it serves."""
        return ModelVersion(self.model, self.version)

    @property
    def engine_version(self) -> str:
        """The version's name inside the engine: `<version>-<variant>-<digest>`, see `archive`.

        Exact to the byte, so two variants of one version can be loaded side by side, and what a node serves can be
        read from its own model list.
        """
        return self.archive.removeprefix(f"{self.model}-").removesuffix(".mar")

    def to_json(self) -> dict[str, Any]:
        """As stored in the ledger and answered by the control API."""
        return {
            "model": self.model,
            "channel": self.channel,
            "version": self.version,
            "variant": self.variant,
            "archive": self.archive,
            "archive_sha256": self.archive_sha256,
            "certificate_sha256": self.certificate_sha256,
            "signature": self.signature.to_json(),
            "kind": self.kind.value,
            "strategy": self.strategy.to_json(),
            "actor": self.actor,
            "reason": self.reason,
            "options": dict(self.options) if self.options is not None else None,
        }

    def numbered(self, release_id: int, *, replaces: int | None, at: datetime) -> Release:
        """The release that it becomes with a number, what it replaces, and a time."""
        values = {field.name: getattr(self, field.name) for field in fields(ReleaseDraft)}
        return Release(**values, id=release_id, replaces=replaces, created_at=at)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release(ReleaseDraft):
    """One decision of the ledger.

    Attributes:
        id: Its number, counting from 1 over the whole ledger.
        replaces: The release that was the channel's newest when this one was made; None for the first.
        created_at: When, in UTC.
    """

    id: int
    replaces: int | None
    created_at: datetime

    def to_json(self) -> dict[str, Any]:
        """As stored in the ledger and answered by the control API."""
        return {
            "id": self.id,
            **ReleaseDraft.to_json(self),
            "replaces": self.replaces,
            "created_at": self.created_at.isoformat(),
        }

    def draft_rollback(self, *, actor: str, reason: str) -> ReleaseDraft:
        """A rollback to what this release serves."""
        values = {field.name: getattr(self, field.name) for field in fields(ReleaseDraft)}
        return ReleaseDraft(**{**values, "kind": ReleaseKind.ROLLBACK, "strategy": IMMEDIATE, "actor": actor, "reason": reason})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Release:
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "signature": Signature.from_json(data["signature"]),
                "kind": ReleaseKind(data["kind"]),
                "strategy": Strategy.from_json(data["strategy"]),
                "created_at": datetime.fromisoformat(data["created_at"]),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a release; `data` holds JSON values only."""

    release_id: int
    kind: EventKind
    at: datetime
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As stored in the ledger and answered by the control API."""
        return {"release_id": self.release_id, "kind": self.kind.value, "at": self.at.isoformat(), "data": dict(self.data)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Event:
        """The inverse of `to_json`."""
        return cls(
            release_id=int(data["release_id"]),
            kind=EventKind(data["kind"]),
            at=datetime.fromisoformat(data["at"]),
            data=dict(data["data"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseRecord:
    """A release with its events and the status that follows from them."""

    release: Release
    status: Status = Status.PENDING
    events: tuple[Event, ...] = ()

    @property
    def in_progress(self) -> bool:
        """Whether its roll-out has not found its end."""
        return self.status in (Status.PENDING, Status.PROGRESSING)

    def last(self, kind: EventKind) -> Event | None:
        """The newest event of that kind."""
        return next((event for event in reversed(self.events) if event.kind is kind), None)

    def happened_since(self, kind: EventKind, mark: Event) -> bool:
        """Whether an event of that kind was recorded behind `mark`, by the ledger's order: times may be equal."""
        return any(event.kind is kind for event in self.events[self.events.index(mark) + 1 :])

    def to_json(self) -> dict[str, Any]:
        """As answered by the control API."""
        return {**self.release.to_json(), "status": self.status.value, "events": [event.to_json() for event in self.events]}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelState:
    """One channel of one model, as the ledger has it.

    Attributes:
        records: All of its releases, oldest first.
        live_stack: Releases that a rollback can go back through, the live one last. A promotion that gets live is
            pushed; a rollback takes off everything above the version that it goes back to, so that a second
            rollback goes further back instead of returning to the bad version:

                promote 1, 2, 3 live    [1, 2, 3]    rollback target 2
                rollback live           [1, 4]       4 serves version 2; rollback target 1
    """

    model: str
    channel: str
    records: tuple[ReleaseRecord, ...] = ()
    live_stack: tuple[int, ...] = ()

    def record(self, release_id: int) -> ReleaseRecord:
        """The record of one of its releases. Raises KeyError."""
        for record in reversed(self.records):
            if record.release.id == release_id:
                return record
        raise KeyError(release_id)

    @property
    def head(self) -> ReleaseRecord | None:
        """The newest release, whatever became of it."""
        return self.records[-1] if self.records else None

    @property
    def live(self) -> ReleaseRecord | None:
        """The release that has the channel's traffic (all but a canary's share)."""
        return self.record(self.live_stack[-1]) if self.live_stack else None

    @property
    def candidate(self) -> ReleaseRecord | None:
        """The newest release while it is on its way to being live."""
        head = self.head
        return head if head is not None and head.in_progress else None

    @property
    def rollback_target(self) -> ReleaseRecord | None:
        """The release that a rollback of the live one goes back to; kept loaded."""
        return self.record(self.live_stack[-2]) if len(self.live_stack) > 1 else None


LedgerState = Mapping[tuple[str, str], ChannelState]


def fold(entries: Iterable[Release | Event], state: LedgerState | None = None) -> dict[tuple[str, str], ChannelState]:
    """Add entries, in the ledger's order, to the state of each (model, channel)."""
    channels = dict(state or {})
    home = {record.release.id: key for key, channel in channels.items() for record in channel.records}
    for entry in entries:
        if isinstance(entry, Release):
            key = (entry.model, entry.channel)
            home[entry.id] = key
            channels[key] = _with_release(channels.get(key, ChannelState(model=entry.model, channel=entry.channel)), entry)
        else:
            key = home[entry.release_id]
            channels[key] = _with_event(channels[key], entry)
    return channels


def _with_release(channel: ChannelState, release: Release) -> ChannelState:
    if channel.candidate is not None:
        channel = _with_record(channel, replace(channel.candidate, status=Status.SUPERSEDED))
    return replace(channel, records=(*channel.records, ReleaseRecord(release=release)))


def _with_event(channel: ChannelState, event: Event) -> ChannelState:
    record = channel.record(event.release_id)
    updated = replace(record, events=(*record.events, event), status=_status_after(record.status, event.kind))
    if updated.status is Status.LIVE and record.status is not Status.LIVE:
        channel = _make_live(channel, updated.release)
    return _with_record(channel, updated)


def _status_after(status: Status, kind: EventKind) -> Status:
    # A release that was superseded may still get live: the controller had given it all traffic when the next one was made.
    # One that was live, or was given up, never gets another end: what says so comes from a controller with a stale view.
    if status in (Status.LIVE, Status.RETIRED, Status.ABORTED):
        return status
    if kind is EventKind.LIVE:
        return Status.LIVE
    if kind is EventKind.ABORTED:
        return Status.ABORTED
    return Status.PROGRESSING if status is Status.PENDING else status


def _make_live(channel: ChannelState, release: Release) -> ChannelState:
    if channel.live is not None:
        channel = _with_record(channel, replace(channel.live, status=Status.RETIRED))
    stack = list(channel.live_stack)
    if release.kind is ReleaseKind.ROLLBACK:
        matching = [i for i, live_id in enumerate(stack) if channel.record(live_id).release.archive == release.archive]
        if matching:
            del stack[matching[-1] :]
    elif stack and channel.record(stack[-1]).release.archive == release.archive:
        stack.pop()  # the same archive promoted again is no place to roll back to
    return replace(channel, live_stack=(*stack, release.id))


def _with_record(channel: ChannelState, record: ReleaseRecord) -> ChannelState:
    ids = (other.release.id for other in reversed(channel.records))  # nearly always one of the last
    at = len(channel.records) - 1 - next(i for i, release_id in enumerate(ids) if release_id == record.release.id)
    return replace(channel, records=(*channel.records[:at], record, *channel.records[at + 1 :]))
