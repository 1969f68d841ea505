"""The view: the ledger folded, reading only what is new."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from registry.errors import Corrupt, NotFound, Unavailable
from registry.release import Event, EventKind, Release, Status, fold
from registry.view import LedgerView
from support.ledger_entries import draft, note
from support.memory_ledger import MemoryLedger
from support.worlds import NOW, event


class Watched(MemoryLedger):
    """Remembers from where it was read; fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.error: Exception | None = None

    def entries(self, after: int = 0) -> Sequence[tuple[int, Release | Event]]:
        self.reads.append(after)
        if self.error is not None:
            raise self.error
        return super().entries(after)


@pytest.fixture
def ledger() -> Watched:
    ledger = Watched()
    ledger.append_release(draft(1), expect=None, at=NOW)
    ledger.append_release(draft(1, model="iris"), expect=None, at=NOW)
    ledger.append_release(draft(1, channel="staging"), expect=None, at=NOW)
    return ledger


def test_it_reads_only_what_is_new_and_is_never_behind(ledger: Watched):
    view = LedgerView(ledger)
    assert len(view.state()) == 3
    ledger.append_event(note(1))
    assert view.state() == fold(entry for _, entry in MemoryLedger.entries(ledger))
    ledger.append_event(event(1, EventKind.LIVE))
    assert view.channel("digits", "production").record(1).status is Status.LIVE
    assert view.state() is view.state()
    assert ledger.reads == [0, 3, 4, 5, 5]


def test_a_state_that_was_handed_out_stays_as_it_was(ledger: Watched):
    view = LedgerView(ledger)
    before = view.state()
    ledger.append_event(event(1, EventKind.LIVE))
    view.state()
    assert before["digits", "production"].record(1).status is Status.PENDING


@pytest.mark.parametrize("error", [Unavailable("down"), Corrupt("changed")])
def test_an_error_loses_nothing(ledger: Watched, error: Exception):
    view = LedgerView(ledger)
    view.state()
    ledger.append_event(event(1, EventKind.LIVE))
    ledger.error = error
    with pytest.raises(type(error)):
        view.state()
    ledger.error = None
    assert view.channel("digits", "production").live is not None


def test_a_channel_without_releases_is_empty(ledger: Watched):
    assert LedgerView(ledger).channel("digits", "canary").records == ()


def test_releases_are_found_by_model(ledger: Watched):
    view = LedgerView(ledger)
    assert [record.release.id for record in view.releases_of("digits")] == [1, 3]
    assert view.record(3, "digits").release.channel == "staging"
    assert view.record(2).release.model == "iris"
    with pytest.raises(NotFound, match=r"no release 9\. `modelway history MODEL`"):
        view.record(9)
    with pytest.raises(NotFound, match=r"no release 2 of digits\. `modelway history digits` lists them\."):
        view.record(2, "digits")
    with pytest.raises(NotFound, match=r"wine was never released\. Released so far: digits, iris\."):
        view.releases_of("wine")
    with pytest.raises(NotFound, match="Nothing was released yet"):
        LedgerView(MemoryLedger()).releases_of("digits")
