"""The route table: which release gets which share of which channel, as a value. The gateway adapter renders it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.bundle import canonical_json
from registry.signature import Signature


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One release as the gateway reaches it: a cluster of its own, so that its statistics are its own.

    Attributes:
        engine_version: The version's name inside the engine, exact to the archive's digest.
        sockets: Unix sockets of the nodes' inference listeners.
        worker_sockets: Unix sockets of the workers themselves: the fast way. The nodes' listeners get what no worker takes.
    """

    release_id: int
    model: str
    version: int
    variant: str
    engine_version: str
    signature: Signature
    sockets: tuple[str, ...]
    worker_sockets: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        return {
            "release_id": self.release_id,
            "model": self.model,
            "version": self.version,
            "variant": self.variant,
            "engine_version": self.engine_version,
            "signature": self.signature.to_json(),
            "sockets": list(self.sockets),
            "worker_sockets": list(self.worker_sockets),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelRoute:
    """How one channel of one model is split.

    Attributes:
        live: The release that gets what no other gets.
        candidate: The release under test, if one has a share.
        candidate_percent: Its share of the channel's requests, 0 to 100.
    """

    model: str
    channel: str
    live: int
    candidate: int | None = None
    candidate_percent: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        return {
            "model": self.model,
            "channel": self.channel,
            "live": self.live,
            "candidate": self.candidate,
            "candidate_percent": self.candidate_percent,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteTable:
    """All routes of the gateway.

    Every release that a channel names has a backend; backends without a channel are warm (reachable by explicit
    version, ready for a rollback) or draining. Both tuples are sorted, so equal tables have equal digests.
    """

    backends: tuple[Backend, ...] = ()
    channels: tuple[ChannelRoute, ...] = ()

    def __post_init__(self) -> None:
        known = {backend.release_id for backend in self.backends}
        named = {r for c in self.channels for r in (c.live, c.candidate) if r is not None}
        assert named <= known, f"channels name releases without a backend: {named - known}"

    def to_json(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        return {"backends": [b.to_json() for b in self.backends], "channels": [c.to_json() for c in self.channels]}

    @property
    def digest(self) -> str:
        """Hex sha256 of the table's content; the gateway reports it back as the version that it has loaded."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def backends_by_release(self) -> Mapping[int, Backend]:
        """Release id -> backend."""
        return {backend.release_id: backend for backend in self.backends}
