"""What the control API answers about the present: pure functions of the ledger and of the controller's last look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.release import ChannelState, EventKind, LedgerState, ReleaseRecord
from serving.controller import Look
from serving.plan import Observed
from serving.ports import LoadState
from serving.steps import Wait


def describe_channel(channel: ChannelState, observed: Observed | None, aliases: Mapping[str, int]) -> dict[str, Any]:
    """One channel of one model: what is live, what is coming, what a rollback goes back to."""
    live, candidate, target = channel.live, channel.candidate, channel.rollback_target
    return {
        "model": channel.model,
        "channel": channel.channel,
        "live": _describe_release(live, observed) if live else None,
        "candidate": _describe_candidate(candidate, observed) if candidate else None,
        "rollback_target": _describe_release(target, observed) if target else None,
        "alias": aliases.get(channel.channel),
    }


def _describe_release(record: ReleaseRecord, observed: Observed | None) -> dict[str, Any]:
    release, live = record.release, record.last(EventKind.LIVE)
    return {
        "release": release.id,
        "version": release.version,
        "variant": release.variant,
        "options": dict(release.options) if release.options is not None else None,
        "since": live.at.isoformat() if live else None,
        "nodes": _load_states(record, observed),
        "warm": observed is not None and LoadState.READY.value in _load_states(record, observed).values(),
    }


def _describe_candidate(record: ReleaseRecord, observed: Observed | None) -> dict[str, Any]:
    weighted = record.last(EventKind.WEIGHTED)
    verdict = observed.verdicts.get(record.release.id) if observed else None
    return {
        **_describe_release(record, observed),
        "kind": record.release.kind.value,
        "status": record.status.value,
        "percent": float(weighted.data["percent"]) if weighted else 0.0,
        "verdict": verdict.to_json() if verdict and weighted else None,
    }


def _load_states(record: ReleaseRecord, observed: Observed | None) -> dict[str, str]:
    if observed is None:
        return {}
    states = {name: node.state_of(record.release) if node.reachable else None for name, node in observed.nodes.items()}
    return {name: state.value if state else "not loaded" for name, state in sorted(states.items())}


def describe_platform(
    desired: LedgerState, look: Look | None, aliases: Mapping[str, Mapping[str, int]], *, registry_reachable: bool | None
) -> dict[str, Any]:
    """The whole platform: components, channels, and what is still to do."""
    observed = look.observed if look else None
    return {
        "components": {
            "registry": _up(registry_reachable),
            "gateway": _up(observed.gateway.reachable if observed else None),
            **{name: _up(node.reachable) for name, node in (observed.nodes.items() if observed else ())},
        },
        "channels": [describe_channel(channel, observed, aliases.get(channel.model, {})) for _, channel in sorted(desired.items())],
        "pending": [str(step) for step in look.steps] if look else [],
        "in_sync": look is not None and not [step for step in look.steps if not isinstance(step, Wait)],
        "looked_at": look.at.isoformat() if look else None,
    }


def _up(reachable: bool | None) -> str:
    return "unknown" if reachable is None else "up" if reachable else "down"
