"""The ledger's hash chain, as pure functions of rows: any edit, removal, insertion or reordering is found.

Each row's hash covers the row and the hash of the row before; the first row follows GENESIS. A head record, kept apart,
holds how many rows there are and the last one's hash, so that a removed tail is found too.

    hash(1) = sha256(json([1, at, kind, body, GENESIS]))
    hash(2) = sha256(json([2, at, kind, body, hash(1)]))
    head    = (2, hash(2))

The chain shows that rows were changed, not by whom: who can rewrite every row and the head can forge it. Row 1's
`prev_hash` is a constant, so two ledgers with the same entries have the same hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from registry.bundle import canonical_json
from registry.errors import Corrupt, UsageError
from registry.release import Event, Release

GENESIS = hashlib.sha256(b"modelway ledger 1").hexdigest()
RELEASE = "release"
_RESTORE = "Somebody changed the ledger: restore it from a backup."


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """One stored entry.

    Attributes:
        kind: `release`, or the kind of the event.
        release_id: The release's own number, or the one that the event is of.
        model: Of a release; None for an event. Like `channel` and `replaces` a copy out of the body, for constraints.
        replaces: Of a release, 0 if it is the channel's first; None for an event.
        body: The entry as canonical JSON.
    """

    seq: int
    at: str
    kind: str
    release_id: int
    model: str | None
    channel: str | None
    replaces: int | None
    body: str
    prev_hash: str
    hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """How long the ledger is and what its last row's hash is."""

    num_entries: int
    hash: str


EMPTY = Head(num_entries=0, hash=GENESIS)


def entry_hash(seq: int, at: str, kind: str, body_json: str, prev_hash: str) -> str:
    """Hex sha256 over a row and, through `prev_hash`, over all rows before."""
    return hashlib.sha256(canonical_json([seq, at, kind, body_json, prev_hash]).encode()).hexdigest()


def kind_of(entry: Release | Event) -> str:
    """The row kind of an entry."""
    return RELEASE if isinstance(entry, Release) else entry.kind.value


def encode(entry: Release | Event) -> str:
    """The entry's body. Raises UsageError if it cannot be stored as JSON or has no time zone."""
    time = entry.created_at if isinstance(entry, Release) else entry.at
    if time.utcoffset() is None:
        raise UsageError(f"a time without time zone ({time.isoformat()})", "Give it in UTC.")
    try:
        body = canonical_json(entry.to_json())
        body.encode()  # lone surrogates are JSON but not UTF-8
    except (ValueError, TypeError) as error:
        raise UsageError(f"an entry that is not JSON ({kind_of(entry)}: {error})") from error
    return body


def decode(kind: str, body: str) -> Release | Event:
    """The inverse of `encode`. Raises ValueError, KeyError or TypeError for what `encode` never wrote."""
    data = json.loads(body)
    return Release.from_json(data) if kind == RELEASE else Event.from_json(data)


def make_row(entry: Release | Event, head: Head) -> LedgerRow:
    """The row that appends the entry behind `head`. Raises UsageError as `encode` does."""
    body, kind, seq = encode(entry), kind_of(entry), head.num_entries + 1
    at = _utc(entry.created_at if isinstance(entry, Release) else entry.at)
    return LedgerRow(
        seq=seq, at=at, kind=kind, **_columns(entry), body=body, prev_hash=head.hash, hash=entry_hash(seq, at, kind, body, head.hash)
    )


def head_after(row: LedgerRow) -> Head:
    """The head once the row is appended."""
    return Head(num_entries=row.seq, hash=row.hash)


def verify_chain(rows: Iterable[LedgerRow], *, start: tuple[int, str] = (0, GENESIS), head: Head | None = None) -> list[Release | Event]:
    """Check the rows behind the row `start` (its sequence number and hash), and decode them.

    Args:
        head: What the last row must be; None when only a part is read.

    Raises:
        Corrupt: Naming the first sequence number at which the chain does not hold.
    """
    seq, previous = start
    entries = []
    for row in rows:
        if row.seq != seq + 1:
            where = "missing" if row.seq > seq else "not where it belongs"
            raise Corrupt(f"the ledger's entry {seq + 1} is {where} ({row.seq} follows {seq})", _RESTORE)
        entries.append(_verified(row, previous))
        seq, previous = row.seq, row.hash
    if head is not None and (seq, previous) != (head.num_entries, head.hash):
        what = f"entry {seq + 1} is missing" if seq < head.num_entries else f"entry {seq} is not the one that its head names"
        raise Corrupt(f"the ledger's {what} (head says {head.num_entries} entries, {head.hash[:12]})", _RESTORE)
    return entries


def _verified(row: LedgerRow, previous: str) -> Release | Event:
    if row.prev_hash != previous:
        raise Corrupt(
            f"the ledger's entry {row.seq} does not follow the one before (hash {row.prev_hash!s:.12}, not {previous:.12})", _RESTORE
        )
    try:
        intact = entry_hash(row.seq, row.at, row.kind, row.body, previous) == row.hash
    except (ValueError, TypeError):
        intact = False  # SQLite keeps whatever type is put into a column
    if not intact:
        raise Corrupt(f"the ledger's entry {row.seq} was changed ({row.kind} of release {row.release_id})", _RESTORE)
    try:
        entry = decode(row.kind, row.body)
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise Corrupt(f"the ledger's entry {row.seq} cannot be read ({error})", "It was written by another release of Modelway.") from error
    columns = _columns(entry)
    kind = kind_of(entry)
    if (kind, columns) != (row.kind, {name: getattr(row, name) for name in columns}):
        raise Corrupt(
            f"the ledger's entry {row.seq} has columns that are not its body's ({row.kind} of release {row.release_id})", _RESTORE
        )
    return entry


def _columns(entry: Release | Event) -> dict[str, Any]:
    if isinstance(entry, Release):
        return {"release_id": entry.id, "model": entry.model, "channel": entry.channel, "replaces": entry.replaces or 0}
    return {"release_id": entry.release_id, "model": None, "channel": None, "replaces": None}


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
