"""A ledger and a lease in memory, for tests of what stands on them. Passes the contract of the real ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime

from registry.lease_terms import LeaseGrant, check_fence, given_up, grant, renewed
from registry.ledger_chain import decode, encode, kind_of
from registry.ledger_refusals import ends_before, release_conflict, unknown_release
from registry.release import Event, Release, ReleaseDraft


class MemoryLedger:
    """Implements `registry.ports.Ledger` and `LeaseStore`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Release | Event] = []
        self._lease: LeaseGrant | None = None

    def append_release(self, draft: ReleaseDraft, *, expect: int | None, at: datetime, fence: int | None = None) -> Release:
        with self._lock:
            self._check_fence(fence)
            releases = self._releases()
            newest = next((r for r in reversed(releases) if (r.model, r.channel) == (draft.model, draft.channel)), None)
            if (newest.id if newest else None) != expect:
                raise release_conflict(draft, expect, newest)
            release = draft.numbered(len(releases) + 1, replaces=expect, at=at)
            self._append(release)
            return release

    def append_event(self, event: Event, *, fence: int | None = None) -> None:
        with self._lock:
            self._check_fence(fence)
            num_releases = len(self._releases())
            if not 1 <= event.release_id <= num_releases:
                raise unknown_release(event.release_id, num_releases)
            self._append(event)

    def entries(self, after: int = 0) -> Sequence[tuple[int, Release | Event]]:
        with self._lock:
            if after > len(self._entries):
                raise ends_before(after, len(self._entries))
            return list(enumerate(self._entries, start=1))[after:]

    def acquire_lease(self, holder: str, ttl_s: float, now: datetime) -> LeaseGrant | None:
        with self._lock:
            granted = grant(self._lease, holder, ttl_s, now)
            self._lease = granted or self._lease
            return granted

    def renew_lease(self, token: int, ttl_s: float, now: datetime) -> LeaseGrant:
        with self._lock:
            self._lease = renewed(self._lease, token, ttl_s, now)
            return self._lease

    def release_lease(self, token: int) -> None:
        with self._lock:
            self._lease = given_up(self._lease, token)

    def _append(self, entry: Release | Event) -> None:
        self._entries.append(decode(kind_of(entry), encode(entry)))  # stored as JSON, like the real ones

    def _releases(self) -> list[Release]:
        return [entry for entry in self._entries if isinstance(entry, Release)]

    def _check_fence(self, fence: int | None) -> None:
        if fence is not None:
            check_fence(self._lease, fence)
