"""Does everything agree? Ledger chain, archive digests, and ledger = alias = route = nodes. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from registry.errors import Corrupt, ModelwayError
from registry.ports import Ledger
from registry.release import ChannelState, LedgerState, ReleaseRecord
from serving.archive_forms import has_digest
from serving.plan import Observed, PlanPolicy, wanted_table
from serving.ports import LoadState


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was checked."""

    check: str
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """As answered by the control API."""
        return {"check": self.check, "ok": self.ok, "detail": self.detail}


def verify_ledger(ledger: Ledger) -> Finding:
    """Read the whole ledger and check its hash chain."""
    try:
        entries = ledger.entries()
    except Corrupt as error:
        return Finding(check="ledger chain", ok=False, detail=str(error))
    return Finding(check="ledger chain", ok=True, detail=f"{len(entries)} entries hold together")


def verify_archives(desired: LedgerState, directory: Path) -> Iterator[Finding]:
    """Digest of every archive that is live or a rollback target."""
    for channel, record in _needed(desired):
        release = record.release
        path = directory / release.archive
        check = f"archive of {release.model_version} ({channel.channel})"
        if not path.exists():
            yield Finding(check=check, ok=False, detail=f"{release.archive} is missing; it is built again when a node needs it")
        else:
            same = has_digest(path, release.archive_sha256)
            yield Finding(check=check, ok=same, detail=f"{release.archive} {'has' if same else 'has not'} the digest of the ledger")


def verify_aliases(desired: LedgerState, aliases_of: Callable[[str], Mapping[str, int]]) -> Iterator[Finding]:
    """Alias = live version, asked of the registry now."""
    for (model, name), channel in sorted(desired.items()):
        if channel.live is None:
            continue
        check, version = f"alias {model}@{name}", channel.live.release.version
        try:
            alias = aliases_of(model).get(name)
        except ModelwayError as error:
            yield Finding(check=check, ok=False, detail=str(error))
        else:
            yield Finding(check=check, ok=alias == version, detail=f"registry has {alias}, ledger has {version}")


def verify_serving(desired: LedgerState, observed: Observed, now: datetime, policy: PlanPolicy) -> Iterator[Finding]:
    """Routes = ledger, and nodes have what is live and what a rollback needs."""
    gateway = observed.gateway
    same = gateway.reachable and gateway.digest == wanted_table(desired, observed, now, policy).digest
    detail = "the loaded routes are the ledger's" if same else "the loaded routes are not the ledger's" if gateway.reachable else "down"
    yield Finding(check="gateway", ok=same, detail=detail)
    for channel, record in _needed(desired):
        for name, node in sorted(observed.nodes.items()):
            state = node.state_of(record.release)
            what = "down" if not node.reachable else state.value if state else "not loaded"
            yield Finding(
                check=f"{record.release.model_version} on {name} ({channel.channel})",
                ok=state is LoadState.READY,
                detail=f"{record.release.variant} is {what}",
            )


def _needed(desired: LedgerState) -> Iterator[tuple[ChannelState, ReleaseRecord]]:
    for _, channel in sorted(desired.items()):
        for record in (channel.live, channel.rollback_target):
            if record is not None:
                yield channel, record
