"""Ledgers and worlds for tests of the planner, made of values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from registry.release import Event, EventKind, LedgerState, Release, ReleaseKind, fold
from registry.signature import Signature, TensorSpec
from registry.strategy import IMMEDIATE, Strategy, StrategyKind, parse_canary_steps
from serving.plan import Observed, PlanPolicy
from serving.ports import GatewayState, LoadedArchive, LoadState, NodeState

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
POLICY = PlanPolicy(num_workers=2, load_timeout_s=60, drain_grace_s=2)
SIGNATURE = Signature(inputs=(TensorSpec("input", "FP32", (-1, 4)),), outputs=(TensorSpec("logits", "FP32", (-1, 3)),))
CANARY = Strategy(kind=StrategyKind.CANARY, steps=parse_canary_steps("10%:5s,50%:5s"), hold_s=30)


def release(release_id: int, version: int, **changes: Any) -> Release:
    """A release of `digits` in production; `changes` replaces fields."""
    model = changes.get("model", "digits")
    made = Release(
        id=release_id,
        model=model,
        channel="production",
        version=version,
        variant="onnx-fp32",
        archive=f"{model}-{version}-onnx-fp32-{version:012x}.mar",
        archive_sha256=f"{version:064x}",
        certificate_sha256="c" * 64,
        signature=SIGNATURE,
        kind=ReleaseKind.PROMOTION,
        strategy=IMMEDIATE,
        actor="tester",
        reason="",
        replaces=None,
        created_at=NOW,
    )
    return replace(made, **changes)


def rollback(release_id: int, version: int, **changes: Any) -> Release:
    """A rollback of `digits` in production."""
    return release(release_id, version, kind=ReleaseKind.ROLLBACK, **changes)


def event(release_id: int, kind: EventKind, *, at: datetime = NOW, **data: Any) -> Event:
    """An event with its data."""
    return Event(release_id=release_id, kind=kind, at=at, data=data)


def live(release_id: int, at: datetime = NOW) -> tuple[Event, ...]:
    """The events of a release that went live at once."""
    kinds = (EventKind.STARTED, EventKind.LOADED, EventKind.PROBED)
    weighted = event(release_id, EventKind.WEIGHTED, at=at, step=0, percent=100.0, counters={})
    return (*(event(release_id, kind, at=at) for kind in kinds), weighted, event(release_id, EventKind.LIVE, at=at))


def ledger(*entries: Release | Event | Sequence[Event]) -> LedgerState:
    """The state after the entries."""
    return fold(one for entry in entries for one in (entry if isinstance(entry, Sequence) else (entry,)))


def node(*loaded: tuple[Release, LoadState], reachable: bool = True, detail: str = "") -> NodeState:
    """A node with these archives, each also in its store."""
    archives = {
        (r.model, r.engine_version): LoadedArchive(model=r.model, engine_version=r.engine_version, state=state, detail=detail)
        for r, state in loaded
    }
    return NodeState(reachable=reachable, archives=archives, stored=frozenset(r.archive for r, _ in loaded))


def world(*nodes: NodeState, gateway: GatewayState | None = None, **changes: Any) -> Observed:
    """A world with these nodes, named node-0, node-1, ..."""
    named = {f"node-{i}": state for i, state in enumerate(nodes)}
    return Observed(
        nodes=named, sockets={name: f"/run/{name}.sock" for name in named}, gateway=gateway or GatewayState(reachable=True), **changes
    )


def later(seconds: float) -> datetime:
    """NOW plus that many seconds."""
    return NOW + timedelta(seconds=seconds)
