"""The ledger on a PostgreSQL server that goes away, comes back, or may not be written. The contract is in tests/contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import psycopg
import pytest

from registry.errors import Corrupt, TimedOut, Unavailable, UsageError
from registry.ledger_sql import SqlLedger
from support.ledger_entries import draft, note
from support.postgresql import PostgresqlServer, new_database, new_server, remove_server
from support.worlds import NOW

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[PostgresqlServer]:
    server = new_server()
    yield server
    remove_server(server)


@pytest.fixture
def url() -> str:
    return new_database()


def test_a_server_that_crashes_loses_nothing_acknowledged_and_is_used_again_when_it_is_back(server: PostgresqlServer) -> None:
    with closing(SqlLedger(server.new_database(), timeout_s=3)) as ledger:
        ledger.append_release(draft(1), expect=None, at=NOW)
        ledger.append_event(note(1))
        before = ledger.entries()
        server.kill()
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"the ledger cannot be used \(postgresql.*Check that the database server runs"):
                ledger.append_event(note(1))
        server.start()
        assert ledger.entries() == before
        ledger.append_event(note(1))
        assert len(ledger.entries()) == 3


def test_a_writer_that_hangs_in_its_transaction_holds_up_others_for_a_limited_time(url: str) -> None:
    with closing(SqlLedger(url, timeout_s=0.3)) as ledger:
        ledger.append_release(draft(1), expect=None, at=NOW)
        with psycopg.connect(url) as holder:
            holder.execute("SELECT * FROM ledger_head FOR UPDATE")
            with pytest.raises(TimedOut, match="stayed busy"):
                ledger.append_event(note(1))
            assert len(ledger.entries()) == 1  # readers do not wait for writers
        ledger.append_event(note(1))


def test_a_database_that_does_not_exist(url: str) -> None:
    missing = url.replace("/test_", "/no_such_")
    with closing(SqlLedger(missing)) as ledger, pytest.raises(Unavailable, match=r'database "no_such_\d+" does not exist.*Create'):
        ledger.entries()


def test_a_user_without_rights_is_told_what_is_missing(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS reader")
        admin.execute("CREATE ROLE reader LOGIN PASSWORD 'secret'")
    refusal = r"permission denied .*right to create and write tables"
    with closing(SqlLedger(url.replace("postgres@", "reader:secret@"))) as ledger, pytest.raises(Unavailable, match=refusal) as raised:
        ledger.entries()
    assert "secret" not in str(raised.value)


def test_p23_tampering_is_found(url: str) -> None:
    with closing(SqlLedger(url)) as ledger, psycopg.connect(url, autocommit=True) as admin:
        ledger.append_release(draft(1), expect=None, at=NOW)
        ledger.append_event(note(1))
        admin.execute("UPDATE ledger_entries SET body = replace(body, 'production', 'productiom') WHERE seq = 1")
        with pytest.raises(Corrupt, match="entry 1 was changed"):
            ledger.entries()
        admin.execute("DELETE FROM ledger_entries WHERE seq = 2")
        with pytest.raises(Corrupt, match="does not end where its head says"):
            ledger.append_event(note(1))
        admin.execute("DROP TABLE ledger_entries")
        with pytest.raises(Corrupt, match="the ledger is damaged"):
            ledger.entries()


def test_the_database_itself_refuses_a_second_successor(url: str) -> None:
    with closing(SqlLedger(url)) as ledger, psycopg.connect(url, autocommit=True) as admin:
        ledger.append_release(draft(1), expect=None, at=NOW)
        copy = "INSERT INTO ledger_entries SELECT 9, at, kind, 9, model, channel, replaces, body, prev_hash, hash FROM ledger_entries"
        with pytest.raises(psycopg.errors.UniqueViolation, match="ledger_one_successor"):
            admin.execute(copy)


def test_a_commit_waits_for_the_disk_whatever_the_server_s_default(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        with closing(SqlLedger(url)) as ledger, ledger._begin(writes=True) as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    finally:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("ALTER ROLE postgres RESET synchronous_commit")


def test_a_clock_s_precision_is_kept(url: str) -> None:
    at = datetime(2026, 1, 1, 0, 0, 0, 123457, tzinfo=UTC)
    with closing(SqlLedger(url)) as ledger:
        made = ledger.append_release(draft(1), expect=None, at=at)
        assert ledger.entries() == [(1, made)]
        assert made.created_at == at


def test_without_the_driver_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"driver is not installed \(psycopg\)\. Run `pip install 'modelway\[postgresql\]'`"):
        SqlLedger("postgresql://postgres@/ledger")
