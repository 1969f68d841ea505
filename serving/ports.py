"""What the controller needs of an engine, a gateway and the measurements. Small on purpose.

The controller observes through these ports, plans, applies one step and observes again; so every effect here is
idempotent, and an observation never raises for a component that is down: it says so in the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Protocol

from registry.release import Release
from registry.strategy import Strategy
from registry.verdict import ReleaseCounters, Verdict
from serving.routes import RouteTable
from serving.runtime.modelway_runtime.sockets import prefix_of


class LoadState(StrEnum):
    """Where a registered archive stands on a node."""

    REGISTERED = "registered"  # known, no worker wanted
    LOADING = "loading"  # workers are starting
    READY = "ready"  # every wanted worker is READY
    DEGRADED = "degraded"  # some are READY, some are not: serves, with less capacity
    FAILED = "failed"  # the workers died and are not being retried


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedArchive:
    """One archive that a node has registered.

    Attributes:
        detail: What the engine last said of a worker that is not READY; empty otherwise.
    """

    model: str
    engine_version: str
    state: LoadState
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """What a node has. `reachable=False` means that nothing else is known but `worker_sockets`.

    Attributes:
        worker_sockets: Paths of the workers' own sockets, which may answer whether or not the node's API does.
    """

    reachable: bool
    archives: Mapping[tuple[str, str], LoadedArchive] = field(default_factory=dict)  # (model, engine_version) -> it
    stored: frozenset[str] = frozenset()  # names of archive files in the node's store
    worker_sockets: tuple[str, ...] = ()

    def state_of(self, release: Release) -> LoadState | None:
        """The load state of a release's archive on this node; None if it is not registered (or not known)."""
        loaded = self.archives.get((release.model, release.engine_version))
        return loaded.state if loaded else None


def sockets_of(release: Release, worker_sockets: Iterable[str]) -> tuple[str, ...]:
    """Of a node's worker sockets, those of the workers that hold a release's archive."""
    prefix = prefix_of(release.model, release.engine_version)
    return tuple(path for path in worker_sockets if PurePath(path).name.startswith(prefix))


class ServingEngine(Protocol):
    """One node. Calls other than `observe` raise Unavailable if the node does not answer."""

    @property
    def name(self) -> str:
        """The node's name in settings, messages and metrics."""

    @property
    def inference_socket(self) -> str:
        """Path of the Unix socket that the gateway reaches it by."""

    def observe(self) -> NodeState:
        """What the node has now. Never raises for a node that is down."""

    def store(self, archive: Path, sha256: str) -> None:
        """Copy an archive into the node's store, atomically, after checking its digest. Idempotent. Raises Corrupt."""

    def register(self, archive_name: str) -> None:
        """Register a stored archive, without workers. Idempotent."""

    def scale(self, model: str, engine_version: str, num_workers: int) -> None:
        """Ask for that many workers, without waiting for them. Idempotent. Raises NotFound."""

    def unregister(self, model: str, engine_version: str) -> None:
        """Unload an archive and delete it from the store. Idempotent. Kills its workers: drain first."""

    def worker_sockets(self) -> tuple[str, ...]:
        """Paths of the workers' own sockets, of all archives, sorted; empty if its workers have none."""

    def infer(
        self, model: str, engine_version: str, body: bytes, headers: Mapping[str, str], timeout_s: float, *, worker: str | None = None
    ) -> tuple[int, bytes]:
        """One request straight to the node, past the gateway: HTTP status and body.

        Args:
            worker: One of `worker_sockets`, to ask that worker itself.

        Raises:
            TimedOut: No answer within `timeout_s`.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayState:
    """What the gateway does now.

    Attributes:
        digest: Digest of the route table that it has loaded; None if it has none, or not one that we wrote.
        active: Release id -> requests in flight, for the releases that have a cluster.
        counters: Release id -> cumulative counters, for the same.
    """

    reachable: bool
    digest: str | None = None
    active: Mapping[int, int] = field(default_factory=dict)
    counters: Mapping[int, ReleaseCounters] = field(default_factory=dict)


class Gateway(Protocol):
    """The proxy that clients reach."""

    def observe(self) -> GatewayState:
        """What it has loaded and counted. Never raises for a gateway that is down."""

    def apply(self, table: RouteTable) -> None:
        """Make the table the wanted one, durably and atomically, and wait until the gateway has it.

        Clusters are added before the routes that name them, and removed after. When this returns no new request
        is routed by the table before. Idempotent.

        Raises:
            Unavailable: If the gateway does not answer; the table is on disk and is loaded when it starts.
            TimedOut: If it answers and does not take the table, with its own reason.
        """


# (candidate's, live's counters over the same window, strategy) -> verdict. Pure; `monitoring` has the real one.
Judge = Callable[[ReleaseCounters, ReleaseCounters, Strategy], Verdict]
