"""What holds when several processes use one ledger, and when they are killed: SQLite and PostgreSQL."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from registry.ledger_sql import SqlLedger
from registry.release import Event
from support.ledger_entries import draft, note
from support.ledger_writer import end, start
from support.postgresql import new_database
from support.worlds import NOW

NUM_KILLS = 12
NUM_PAIRS = 30
NUM_OPENERS = 6


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_database() if request.param == "postgresql" else f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[SqlLedger]:
    with closing(SqlLedger(url)) as ledger:
        yield ledger


def test_p23_what_was_acknowledged_survives_kill_9(ledger: SqlLedger, url: str) -> None:
    ledger.append_release(draft(1), expect=None, at=NOW)
    rng = random.Random(23)
    written = 1
    for _ in range(NUM_KILLS):
        writer = start("notes", url)
        assert writer.stdout is not None
        for _ in range(rng.randint(1, 15)):
            acknowledged = int(writer.stdout.readline())
        time.sleep(rng.uniform(0, 0.004))  # somewhere within the next append
        rest = end(writer).split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        entries = ledger.entries()
        # The last append may have been committed without having been acknowledged.
        assert acknowledged <= len(entries) <= acknowledged + 1
        assert acknowledged > written
        for seq, entry in entries[1:]:
            assert isinstance(entry, Event)
            assert entry.data["seq"] == seq
        written = len(entries)
    ledger.append_event(note(1))


def test_p23_an_append_that_was_killed_before_its_commit_never_was(ledger: SqlLedger, url: str) -> None:
    ledger.append_release(draft(1), expect=None, at=NOW)
    before = ledger.entries()
    for _ in range(2):
        writer = start("die-in-commit", url)
        assert writer.wait(30) == -9
        end(writer)
        assert ledger.entries() == before
    ledger.append_event(note(1))  # nothing is left locked
    assert len(ledger.entries()) == 2


def test_p11_of_two_promotions_at_once_from_two_processes_exactly_one_wins(ledger: SqlLedger, url: str) -> None:
    writers = [start("promote", url, actor) for actor in ("ada", "bob")]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for expect in range(NUM_PAIRS):
            for writer in writers:
                assert writer.stdin is not None
                writer.stdin.write(f"{expect}\n")
            answers = sorted(writer.stdout.readline() for writer in writers if writer.stdout is not None)
            assert answers[1] == f"won {expect + 1}\n"
            assert answers[0].startswith(f"lost release {expect + 1} (digits/{expect + 1}, by ")
    finally:
        for writer in writers:
            end(writer)
    assert len(ledger.entries()) == NUM_PAIRS


def test_first_opens_at_once_do_not_race(ledger: SqlLedger, url: str) -> None:
    openers = [start("open", url) for _ in range(NUM_OPENERS)]
    try:
        for opener in openers:
            assert opener.stdout is not None
            assert opener.stdout.readline() == "ready\n"
        for opener in openers:
            assert opener.stdin is not None
            opener.stdin.write("go\n")
        assert [opener.stdout.readline() for opener in openers if opener.stdout is not None] == ["done\n"] * NUM_OPENERS
    finally:
        for opener in openers:
            end(opener)
    assert len(ledger.entries()) == NUM_OPENERS
