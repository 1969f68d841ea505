"""The ledger folded into channel states, kept up to date by reading only what is new."""

from __future__ import annotations

import threading

from registry.errors import NotFound
from registry.ports import Ledger
from registry.release import ChannelState, LedgerState, ReleaseRecord, fold


class LedgerView:
    """A cache of `fold(ledger)`. Safe for threads; never behind the ledger when `state` returns."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._state: dict[tuple[str, str], ChannelState] = {}
        self._seq = 0

    def state(self) -> LedgerState:
        """The state of each (model, channel), now. Raises Corrupt if the chain does not hold."""
        with self._lock:
            new = self._ledger.entries(self._seq)
            if new:
                self._state = fold((entry for _, entry in new), self._state)
                self._seq = new[-1][0]
            return self._state

    def channel(self, model: str, channel: str) -> ChannelState:
        """One channel; an empty one if it never had a release."""
        return self.state().get((model, channel), ChannelState(model=model, channel=channel))

    def record(self, release_id: int, model: str | None = None) -> ReleaseRecord:
        """One release, whatever its channel; of that model, if one is named. Raises NotFound."""
        for (name, _), channel in self.state().items():
            for record in channel.records:
                if record.release.id == release_id and model in (None, name):
                    return record
        raise NotFound(f"no release {release_id}{f' of {model}' if model else ''}", f"`modelway history {model or 'MODEL'}` lists them.")

    def releases_of(self, model: str) -> tuple[ReleaseRecord, ...]:
        """All releases of a model, oldest first. Raises NotFound for a model that never had one."""
        records = [record for (name, _), channel in self.state().items() if name == model for record in channel.records]
        if not records:
            released = sorted({name for name, _ in self.state()})
            known = f"Released so far: {', '.join(released)}." if released else "Nothing was released yet."
            raise NotFound(f"{model} was never released", known)
        return tuple(sorted(records, key=lambda record: record.release.id))
