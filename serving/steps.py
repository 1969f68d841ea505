"""The steps that lead from what is to what should be. Data only: executing and explaining consume the same list.

A step is applied by the controller, one at a time, and the world is looked at again afterwards. `Wait` is no
effect: it says what a channel is waiting for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.release import EventKind
from serving.routes import RouteTable


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreArchive:
    """Check the archive's digest and copy it into the node's store."""

    node: str
    release_id: int
    archive: str
    sha256: str

    def __str__(self) -> str:
        return f"store {self.archive} on {self.node}, digest checked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Register:
    """Register a stored archive, without workers."""

    node: str
    archive: str

    def __str__(self) -> str:
        return f"register {self.archive} on {self.node}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Start the workers of a registered archive."""

    node: str
    model: str
    engine_version: str
    num_workers: int

    def __str__(self) -> str:
        return f"start {self.num_workers} worker(s) of {self.model}/{self.engine_version} on {self.node}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unload:
    """Unload an archive that no route names and that has no request in flight."""

    node: str
    model: str
    engine_version: str

    def __str__(self) -> str:
        return f"unload {self.model}/{self.engine_version} from {self.node}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Ask the golden set on every node, past the gateway, and record PROBED or ABORTED."""

    release_id: int
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"ask the golden set of release {self.release_id} on {', '.join(self.nodes)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyRoutes:
    """Make the gateway use the table; one atomic switch."""

    table: RouteTable

    def __str__(self) -> str:
        shares = []
        for route in self.table.channels:
            live = f"release {route.live} {100 - route.candidate_percent:g}%"
            candidate = f", release {route.candidate} {route.candidate_percent:g}%" if route.candidate_percent else ""
            shares.append(f"{route.model}@{route.channel} -> {live}{candidate}")
        routed = {release for route in self.table.channels for release in (route.live, route.candidate)}
        spare = [str(backend.release_id) for backend in self.table.backends if backend.release_id not in routed]
        kept = f"; kept without a share: release {', '.join(spare)}" if spare else ""
        return f"switch the gateway: {'; '.join(shares) or 'no channel'}{kept}"

    def __hash__(self) -> int:
        return hash(self.table.digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Append an event to the ledger."""

    release_id: int
    kind: EventKind
    data: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        detail = f" {self.data['percent']:g}%" if self.kind is EventKind.WEIGHTED else ""
        reason = f": {self.data['reason']}" if "reason" in self.data else ""
        return f"record release {self.release_id} {self.kind.value}{detail}{reason}"

    def __hash__(self) -> int:
        return hash((self.release_id, self.kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Nothing to do yet for a release; says what it waits for."""

    release_id: int
    reason: str

    def __str__(self) -> str:
        return f"wait: {self.reason}"


Step = StoreArchive | Register | Scale | Unload | Probe | ApplyRoutes | Record | Wait
