"""What the rest of Modelway needs of a registry and a ledger. Adapters are tested by one contract class each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from registry.lease_terms import LeaseGrant
from registry.names import ModelVersion
from registry.release import Event, Release, ReleaseDraft


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionInfo:
    """A registered version as the registry describes it.

    Attributes:
        run_id: The run that made it, or that keeps its files; None if there is none.
        bundle: Where its newest bundle lies, as `attach_bundle` recorded it; None if it was never exported.
        bundle_sha256: Digest of that bundle's MANIFEST.json.
    """

    model_version: ModelVersion
    run_id: str | None
    bundle: str | None
    bundle_sha256: str | None
    created_at: datetime
    tags: Mapping[str, str] = field(default_factory=dict)


class ModelRegistry(Protocol):
    """Versions, their bundles and the aliases. Every call may raise `Unavailable`, within seconds."""

    def registered_models(self) -> Sequence[str]:
        """Names of all models, sorted."""

    def versions(self, model: str) -> Sequence[VersionInfo]:
        """All versions of a model, oldest first. Raises NotFound, naming the models that exist."""

    def version(self, model_version: ModelVersion) -> VersionInfo:
        """One version. Raises NotFound, naming the versions that exist."""

    def aliases(self, model: str) -> Mapping[str, int]:
        """Alias -> version number; empty for an unknown model."""

    def set_alias(self, model_version: ModelVersion, alias: str) -> None:
        """Point the alias to the version. Idempotent. Raises NotFound."""

    def set_tag(self, model_version: ModelVersion, key: str, value: str) -> None:
        """Set a tag on the version. Idempotent. Raises NotFound."""

    def attach_bundle(self, model_version: ModelVersion, bundle: Path) -> VersionInfo:
        """Upload a complete, verified bundle directory and make it the version's bundle.

        Uploads under a name made of the manifest's digest, reads it back, and only then moves the version's tag to
        it: a crash leaves the old bundle in place, and repeating is harmless. Raises NotFound, Corrupt.
        """

    def fetch_bundle(self, model_version: ModelVersion, into: Path) -> Path:
        """Download the version's bundle into the new directory `into`, verified file by file; returns `into`.

        Raises NotFound (never exported), Corrupt.
        """

    def attach_document(self, model_version: ModelVersion, name: str, content: bytes | None) -> None:
        """Keep a small document with the version, in place of an earlier one of that name; None takes it away.

        Stored beside the bundle under its digest and read back before the version's tag moves to it, as a bundle is.
        `name` is a word of lower-case letters, digits, `-` and `.`. Idempotent. Raises NotFound.
        """

    def document(self, model_version: ModelVersion, name: str) -> bytes | None:
        """The document of that name, its digest checked; None if there is none. Raises NotFound (no such version), Corrupt."""


class Ledger(Protocol):
    """The append-only, hash-chained record of releases and events. Safe for many threads and processes.

    Both appends are durable when they return, take a `fence` (the token of the writer's lease, see `registry.lease_terms`;
    None for a writer without one), and refuse what is not JSON or has no time zone with UsageError. Every call may raise
    Unavailable or TimedOut when the database does.
    """

    def append_release(self, draft: ReleaseDraft, *, expect: int | None, at: datetime, fence: int | None = None) -> Release:
        """Append a release if `expect` is the channel's newest release id (None: the channel has none).

        Release ids count from 1 over the whole ledger, without gaps.

        Raises:
            Conflict: If another release came first; names it. Or the lease of `fence` is no longer held.
        """

    def append_event(self, event: Event, *, fence: int | None = None) -> None:
        """Append an event of an existing release.

        Raises:
            NotFound: There is no such release.
            Conflict: The lease of `fence` is no longer held.
        """

    def entries(self, after: int = 0) -> Sequence[tuple[int, Release | Event]]:
        """Entries with their sequence number (1, 2, 3, ...), in order, from the one behind `after`.

        Raises:
            Corrupt: If the hash chain does not hold over the entries read, or the ledger ends before `after`.
        """


class LeaseStore(Protocol):
    """Who may act as the controller now: at most one holder, each with a higher fencing token than the one before."""

    def acquire_lease(self, holder: str, ttl_s: float, now: datetime) -> LeaseGrant | None:
        """The lease, if nobody else holds it at `now`; None if somebody does. Its own holder gets it anew at once."""

    def renew_lease(self, token: int, ttl_s: float, now: datetime) -> LeaseGrant:
        """Hold it until `now` + `ttl_s`, also when it had run out and nobody took it. Raises Conflict if it was lost."""

    def release_lease(self, token: int) -> None:
        """Give it up. Idempotent; nothing happens if it was lost already."""
