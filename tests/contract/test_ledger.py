"""One contract for every ledger: in memory, SQLite, PostgreSQL."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol

import pytest

import registry.ledger_sql
from registry.errors import Conflict, Corrupt, NotFound, UsageError
from registry.ledger_sql import SqlLedger
from registry.ports import LeaseStore, Ledger
from registry.release import Event, EventKind, Release
from support.ledger_entries import draft, note
from support.memory_ledger import MemoryLedger
from support.postgresql import new_database
from support.worlds import NOW, later


class LedgerAndLease(Ledger, LeaseStore, Protocol):
    """What the contract is of."""


class LedgerContract:
    # `ledger` is empty; `other` is a second way to the same one, as another process would have it.

    def test_an_empty_ledger_has_no_entries(self, ledger: LedgerAndLease) -> None:
        assert list(ledger.entries()) == []

    def test_releases_count_over_all_models_and_channels(self, ledger: LedgerAndLease) -> None:
        made = [
            ledger.append_release(draft(1), expect=None, at=NOW),
            ledger.append_release(draft(1, model="iris"), expect=None, at=NOW),
            ledger.append_release(draft(2, channel="staging"), expect=None, at=NOW),
            ledger.append_release(draft(2), expect=1, at=NOW),
        ]
        assert [release.id for release in made] == [1, 2, 3, 4]
        assert [release.replaces for release in made] == [None, None, None, 1]
        assert ledger.entries() == list(enumerate(made, start=1))

    def test_an_entry_comes_back_as_it_was(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        reason = "später 'quoted' \"twice\" \x00 \U0001f600 %s :name " + "x" * 100_000
        release = ledger.append_release(draft(1, reason=reason), expect=None, at=NOW + timedelta(microseconds=1))
        east = datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))
        event = Event(release_id=1, kind=EventKind.WEIGHTED, at=east, data={"percent": 0.1, "counters": {"1": {"n": [1, None, True]}}})
        ledger.append_event(event)
        assert other.entries() == [(1, release), (2, event)]

    def test_only_who_names_the_newest_release_may_replace_it(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        ledger.append_release(draft(1), expect=None, at=NOW)
        ledger.append_release(draft(2, actor="ada"), expect=1, at=NOW)
        for expect in (None, 1, 3):
            with pytest.raises(Conflict, match=r"release 2 \(digits/2, by ada at 2026-01-01T12:00:00\+00:00\)"):
                other.append_release(draft(3), expect=expect, at=NOW)
        with pytest.raises(Conflict, match=r"staging of digits has no release \(expected release 2\)"):
            ledger.append_release(draft(3, channel="staging"), expect=2, at=NOW)
        assert other.append_release(draft(3), expect=2, at=NOW).id == 3  # refusals leave no gaps

    def test_an_event_needs_its_release(self, ledger: LedgerAndLease) -> None:
        with pytest.raises(NotFound, match=r"no release 1 in the ledger \(there is no release yet\)"):
            ledger.append_event(note(1))
        ledger.append_release(draft(1), expect=None, at=NOW)
        for release_id in (-1, 0, 2):
            with pytest.raises(NotFound, match=rf"no release {release_id} in the ledger \(releases are 1 to 1\)"):
                ledger.append_event(note(release_id))
        assert len(ledger.entries()) == 1

    def test_entries_are_read_from_where_a_reader_stopped(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        ledger.append_release(draft(1), expect=None, at=NOW)
        for n in range(4):
            ledger.append_event(note(n=n))
        assert other.entries(0) == ledger.entries()
        assert [seq for seq, _ in other.entries(2)] == [3, 4, 5]
        assert other.entries(2) == ledger.entries()[2:]
        assert list(other.entries(5)) == []

    def test_a_ledger_that_is_shorter_than_it_was_is_corrupt(self, ledger: LedgerAndLease) -> None:
        ledger.append_release(draft(1), expect=None, at=NOW)
        with pytest.raises(Corrupt, match="ends at entry 1, but entry 2 was read before"):
            ledger.entries(2)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", "\ud800"], ids=repr)
    def test_what_is_not_json_is_refused(self, ledger: LedgerAndLease, value: object) -> None:
        ledger.append_release(draft(1), expect=None, at=NOW)
        with pytest.raises(UsageError, match="not JSON"):
            ledger.append_event(note(value=value))
        ledger.append_event(note(value=1))
        assert len(ledger.entries()) == 2

    def test_a_time_without_zone_is_refused(self, ledger: LedgerAndLease) -> None:
        naive = NOW.replace(tzinfo=None)
        with pytest.raises(UsageError, match="time without time zone"):
            ledger.append_release(draft(1), expect=None, at=naive)
        ledger.append_release(draft(1), expect=None, at=NOW)
        with pytest.raises(UsageError, match="time without time zone"):
            ledger.append_event(Event(release_id=1, kind=EventKind.LIVE, at=naive))
        assert len(ledger.entries()) == 1

    def test_p11_of_two_promotions_at_once_exactly_one_wins(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        expect = None
        with ThreadPoolExecutor(2) as pool:
            for pair in range(100):
                start = threading.Barrier(2)
                tries = [pool.submit(_promote, to, actor, expect, start) for to, actor in ((ledger, "ada"), (other, "bob"))]
                results = [done.result() for done in tries]
                winners = [result for result in results if isinstance(result, Release)]
                losers = [result for result in results if isinstance(result, Conflict)]
                assert (len(winners), len(losers)) == (1, 1)
                assert winners[0].id == pair + 1
                assert f"release {winners[0].id} (digits/{pair + 1}, by {winners[0].actor} at" in str(losers[0])
                expect = winners[0].id
        assert [release.replaces for _, release in ledger.entries() if isinstance(release, Release)] == [None, *range(1, 100)]

    def test_many_writers_and_readers_share_one_chain(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        ledger.append_release(draft(1), expect=None, at=NOW)

        def write(name: str, to: LedgerAndLease) -> None:
            for n in range(25):
                to.append_event(note(name=name, n=n))
                to.entries()

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(write, f"writer {i}", to) for i, to in enumerate((ledger, other, ledger, other))]:
                done.result()
        numbered = ledger.entries()
        assert [seq for seq, _ in numbered] == list(range(1, 102))
        for i in range(4):
            of_one = [e.data["n"] for _, e in numbered if isinstance(e, Event) and e.data["name"] == f"writer {i}"]
            assert of_one == list(range(25))

    # --- the lease

    def test_a_lease_has_one_holder_at_a_time(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        granted = ledger.acquire_lease("a", 10, NOW)
        assert granted is not None
        assert (granted.holder, granted.token, granted.expires_at) == ("a", 1, later(10))
        assert other.acquire_lease("b", 10, later(9.9)) is None
        taken = other.acquire_lease("b", 10, later(10))
        assert taken is not None
        assert taken.token == 2
        with pytest.raises(Conflict, match=r"lease was lost \(token 1; b holds token 2\)"):
            ledger.renew_lease(1, 10, later(10))

    def test_a_lease_is_renewed_also_when_it_ran_out_and_nobody_took_it(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        ledger.acquire_lease("a", 10, NOW)
        assert ledger.renew_lease(1, 10, later(5)).expires_at == later(15)
        assert other.acquire_lease("b", 10, later(12)) is None
        assert ledger.renew_lease(1, 10, later(100)).expires_at == later(110)
        assert other.acquire_lease("b", 10, later(100)) is None

    def test_a_lease_that_was_given_up_is_free_and_its_token_stale(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        ledger.release_lease(1)  # nothing to give up
        ledger.acquire_lease("a", 10, NOW)
        ledger.release_lease(1)
        ledger.release_lease(1)
        with pytest.raises(Conflict, match="token 1; nobody holds it"):
            ledger.renew_lease(1, 10, NOW)
        granted = other.acquire_lease("b", 10, NOW)
        assert granted is not None
        assert granted.token == 2
        ledger.release_lease(1)  # lost long ago: b keeps it
        assert other.renew_lease(2, 10, NOW).holder == "b"

    def test_a_holder_that_starts_anew_fences_its_former_self_off(self, ledger: LedgerAndLease) -> None:
        ledger.acquire_lease("a", 10, NOW)
        again = ledger.acquire_lease("a", 10, later(1))
        assert again is not None
        assert again.token == 2
        with pytest.raises(Conflict, match="token 1"):
            ledger.renew_lease(1, 10, later(1))

    def test_of_many_that_ask_at_once_one_gets_the_lease(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        start = threading.Barrier(8)

        def ask(name: str, of: LedgerAndLease) -> bool:
            start.wait()
            return of.acquire_lease(name, 10, NOW) is not None

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, f"holder {i}", (ledger, other)[i % 2]) for i in range(8)]
            assert sum(done.result() for done in asked) == 1

    def test_a_stale_token_appends_nothing(self, ledger: LedgerAndLease, other: LedgerAndLease) -> None:
        with pytest.raises(Conflict, match="nobody holds it"):
            ledger.append_release(draft(1), expect=None, at=NOW, fence=1)
        ledger.acquire_lease("a", 10, NOW)
        ledger.append_release(draft(1), expect=None, at=NOW, fence=1)
        ledger.append_event(note(1), fence=1)
        other.acquire_lease("b", 10, later(10))
        appends: list[Callable[[], object]] = [
            lambda: ledger.append_event(note(1), fence=1),
            lambda: ledger.append_release(draft(2), expect=1, at=NOW, fence=1),
            lambda: ledger.append_event(note(1), fence=3),
        ]
        for append in appends:
            with pytest.raises(Conflict, match="b holds token 2"):
                append()
        assert len(ledger.entries()) == 2
        other.append_event(note(1), fence=2)
        ledger.append_event(note(1))  # a writer without a lease, as the control API's promotions are


def _promote(ledger: LedgerAndLease, actor: str, expect: int | None, start: threading.Barrier) -> Release | Conflict:
    start.wait()
    try:
        return ledger.append_release(draft((expect or 0) + 1, actor=actor), expect=expect, at=datetime.now(UTC))
    except Conflict as conflict:
        return conflict


class TestMemoryLedger(LedgerContract):
    @pytest.fixture
    def ledger(self) -> MemoryLedger:
        return MemoryLedger()

    @pytest.fixture
    def other(self, ledger: MemoryLedger) -> MemoryLedger:
        return ledger


class SqlLedgerContract(LedgerContract):
    @pytest.fixture
    def ledger(self, url: str) -> Iterator[SqlLedger]:
        ledger = SqlLedger(url)
        yield ledger
        ledger.close()

    @pytest.fixture
    def other(self, url: str) -> Iterator[SqlLedger]:
        ledger = SqlLedger(url)
        yield ledger
        ledger.close()

    def test_of_two_first_opens_at_once_one_makes_the_schema(
        self, ledger: SqlLedger, other: SqlLedger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both_inside, make = threading.Barrier(2), registry.ledger_sql._schema.create_all
        met: list[str] = []

        def wait_for_the_other(connection: object) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_inside.wait(0.5)  # only ever over in time if the other is let in too
                met.append("both make the schema")
            make(connection)  # type: ignore[arg-type]  # as SQLAlchemy's

        monkeypatch.setattr(registry.ledger_sql._schema, "create_all", wait_for_the_other)
        with ThreadPoolExecutor(2) as pool:
            assert [opened.result() for opened in (pool.submit(ledger.entries), pool.submit(other.entries))] == [[], []]
        assert met == []


class TestSqliteLedger(SqlLedgerContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/ledger.db"


@pytest.mark.integration
class TestPostgresqlLedger(SqlLedgerContract):
    @pytest.fixture
    def url(self) -> str:
        return new_database()
