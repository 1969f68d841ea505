"""The ledger on SQLite: what happens to its file, and what its user is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import registry.ledger_sql
from registry.errors import Conflict, Corrupt, ModelwayError, TimedOut, Unavailable, UsageError
from registry.ledger_sql import SqlLedger
from support.ledger_entries import draft, note
from support.worlds import NOW


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(file: Path) -> Iterator[SqlLedger]:
    """Two releases and three events."""
    with closing(SqlLedger(f"sqlite:///{file}")) as ledger:
        ledger.append_release(draft(1), expect=None, at=NOW)
        ledger.append_event(note(1, n=1))
        ledger.append_event(note(1, n=2))
        ledger.append_release(draft(2), expect=1, at=NOW)
        ledger.append_event(note(2, n=3))
        yield ledger


def change(file: Path, *statements: str) -> None:
    """As somebody with the sqlite3 program would."""
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def read(file: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


FORGED = (
    "INSERT INTO ledger_entries SELECT {seq}, at, kind, release_id, model, channel, replaces, body, prev_hash, hash FROM ledger_entries"
)
TAMPERING = {
    "at": "UPDATE ledger_entries SET at = '2030-01-01T00:00:00+00:00' WHERE seq = 2",
    "kind": "UPDATE ledger_entries SET kind = 'live' WHERE seq = 2",
    "release id": "UPDATE ledger_entries SET release_id = 2 WHERE seq = 2",
    "model": "UPDATE ledger_entries SET model = 'iris' WHERE seq = 1",
    "channel": "UPDATE ledger_entries SET channel = 'staging' WHERE seq = 1",
    "replaces": "UPDATE ledger_entries SET replaces = 3 WHERE seq = 4",
    "body": "UPDATE ledger_entries SET body = replace(body, '\"n\":1', '\"n\":7') WHERE seq = 2",
    "body as bytes": "UPDATE ledger_entries SET body = CAST(body AS BLOB) WHERE seq = 2",
    "previous hash": "UPDATE ledger_entries SET prev_hash = hash WHERE seq = 2",
    "hash": "UPDATE ledger_entries SET hash = prev_hash WHERE seq = 2",
    "first gone": "DELETE FROM ledger_entries WHERE seq = 1",
    "middle gone": "DELETE FROM ledger_entries WHERE seq = 3",
    "last gone": "DELETE FROM ledger_entries WHERE seq = 5",
    "tail gone": "DELETE FROM ledger_entries WHERE seq > 2",
    "all gone": "DELETE FROM ledger_entries",
    "slipped in before": FORGED.format(seq=0) + " WHERE seq = 2",
    "slipped in behind": FORGED.format(seq=6) + " WHERE seq = 5",
    "two swapped": "UPDATE ledger_entries SET seq = CASE seq WHEN 2 THEN -3 WHEN 3 THEN -2 END WHERE seq IN (2, 3)",
    "head says fewer": "UPDATE ledger_head SET num_entries = 4",
    "head says more": "UPDATE ledger_head SET num_entries = 6",
    "head names another": "UPDATE ledger_head SET hash = (SELECT hash FROM ledger_entries WHERE seq = 4)",
    "head gone": "DELETE FROM ledger_head",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING.keys())
def test_p23_tampering_is_found(ledger: SqlLedger, file: Path, statement: str) -> None:
    assert len(ledger.entries()) == 5
    change(file, statement, "UPDATE ledger_entries SET seq = -seq WHERE seq < 0")
    with pytest.raises(Corrupt, match=r"^the ledger(| |'s).*(backup|MODELWAY_LEDGER_URL)"):
        ledger.entries()


def test_p23_a_changed_entry_is_named(ledger: SqlLedger, file: Path) -> None:
    change(file, TAMPERING["body"])
    with pytest.raises(Corrupt, match=r"entry 2 was changed \(held of release 1\)"):
        ledger.entries()
    assert [seq for seq, _ in ledger.entries(2 + 1)] == [4, 5]  # who has read it before is not kept from reading on
    with pytest.raises(Corrupt, match="entry 2 was changed"):
        ledger.entries(2)  # the entry that a reader starts from is looked at again


@pytest.mark.parametrize("tampering", ["last gone", "all gone", "slipped in behind", "head says fewer", "head names another", "head gone"])
def test_p23_nothing_is_appended_behind_a_broken_end(ledger: SqlLedger, file: Path, tampering: str) -> None:
    change(file, TAMPERING[tampering])
    num_rows = len(read(file, "SELECT seq FROM ledger_entries"))
    with pytest.raises(Corrupt):
        ledger.append_event(note(1))
    assert len(read(file, "SELECT seq FROM ledger_entries")) == num_rows


def test_the_database_itself_refuses_a_second_successor(ledger: SqlLedger, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = registry.ledger_sql._newest_release
    with closing(SqlLedger(f"sqlite:///{file}")) as other, other._begin(writes=False) as connection:
        newest = stale(connection, "digits", "production")
    ledger.append_release(draft(3), expect=2, at=NOW)
    monkeypatch.setattr(registry.ledger_sql, "_newest_release", lambda *_: newest)  # a writer whose check is broken
    with pytest.raises(Conflict, match="another writer"):
        ledger.append_release(draft(4), expect=2, at=NOW)
    monkeypatch.setattr(registry.ledger_sql, "_newest_release", lambda *_: None)
    with pytest.raises(Conflict, match="another writer"):
        ledger.append_release(draft(4), expect=None, at=NOW)  # the first release's place is unique too
    assert len(ledger.entries()) == 6


def test_a_committed_append_is_on_disk(ledger: SqlLedger) -> None:
    with ledger._begin(writes=False) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL


def test_opening_is_lazy(tmp_path: Path) -> None:
    with closing(SqlLedger(f"sqlite:///{tmp_path}/no/such/directory/ledger.db")):
        assert list(tmp_path.iterdir()) == []


def test_it_can_be_used_again_after_close(ledger: SqlLedger) -> None:
    ledger.close()
    ledger.append_event(note(2))
    assert len(ledger.entries()) == 6


# --- what cannot be used, and what its user is told


def message_of(url: str) -> ModelwayError:
    with pytest.raises(ModelwayError) as raised, closing(SqlLedger(url, timeout_s=0.2)) as ledger:
        ledger.acquire_lease("somebody", 10, NOW)  # a write that no other writer's work refuses
    return raised.value


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    error = message_of(f"sqlite:///{tmp_path}/none/ledger.db")
    assert isinstance(error, Unavailable)
    assert str(error) == (
        f"the ledger cannot be used ({tmp_path}/none/ledger.db: unable to open database file). "
        "Check that its directory exists and that you may write there."
    )


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    assert isinstance(message_of(f"sqlite:///{tmp_path}"), Unavailable)


def test_a_ledger_that_may_not_be_written(ledger: SqlLedger, file: Path) -> None:
    ledger.close()
    error = message_of(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert isinstance(error, Unavailable)
    assert str(error).endswith("attempt to write a readonly database). Check that you may write the file and its directory.")


def test_a_full_disk(ledger: SqlLedger) -> None:
    with ledger._begin(writes=False) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match=r"database or disk is full\)\. Free some space"):
        ledger.append_event(note(1, filler="x" * 100_000))
    assert len(ledger.entries()) == 5
    ledger.append_event(note(1))


def test_a_file_that_is_no_database(file: Path) -> None:
    file.write_text("this is a text, and a rather long one\n" * 100)
    error = message_of(f"sqlite:///{file}")
    assert isinstance(error, Corrupt)
    assert str(error).startswith(f"not a ledger ({file}: file is not a database). Restore it")
    assert file.read_text().startswith("this is a text")


def test_a_file_with_a_damaged_page(ledger: SqlLedger, file: Path) -> None:
    for n in range(50):
        ledger.append_event(note(1, n=n, filler="x" * 500))
    ledger.close()
    content = bytearray(file.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 16] = b"\xff" * 16
    file.write_bytes(content)
    with closing(SqlLedger(f"sqlite:///{file}")) as damaged, pytest.raises(Corrupt, match=r"the ledger is damaged|lost its"):
        damaged.entries()


def test_another_schema(ledger: SqlLedger, file: Path) -> None:
    ledger.close()
    change(file, "UPDATE ledger_meta SET schema_version = 99")
    error = message_of(f"sqlite:///{file}")
    assert isinstance(error, Unavailable)
    assert "version 99, this Modelway knows 1" in str(error)
    change(file, "DELETE FROM ledger_meta")
    assert "version None" in str(message_of(f"sqlite:///{file}"))


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_head", "ledger_lease", "ledger_meta"])
def test_a_lost_table_is_not_made_anew(ledger: SqlLedger, file: Path, table: str) -> None:
    change(file, f"DROP TABLE {table}")
    if table != "ledger_meta":  # who has opened the ledger already
        use = (lambda: ledger.acquire_lease("a", 10, NOW)) if table == "ledger_lease" else ledger.entries
        with pytest.raises(Corrupt, match=f"the ledger is damaged .*no such table: {table}"):
            use()
    error = message_of(f"sqlite:///{file}")  # who opens it now
    assert isinstance(error, Corrupt)
    assert f"lost its table {table}" in str(error)


def test_tables_of_others_in_the_same_database_do_not_matter(file: Path) -> None:
    change(file, "CREATE TABLE entries (id INTEGER)", "CREATE TABLE alembic_version (version_num TEXT)")
    with closing(SqlLedger(f"sqlite:///{file}")) as ledger:
        assert ledger.append_release(draft(1), expect=None, at=NOW).id == 1


def test_a_ledger_that_another_process_holds(ledger: SqlLedger, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        error = message_of(f"sqlite:///{file}")
        assert isinstance(error, TimedOut)
        assert "stayed busy" in str(error)
        assert len(ledger.entries()) == 5  # readers do not wait for writers
    ledger.append_event(note(1))


@pytest.mark.parametrize("url", ["", "ledger.db", "sqlite://", "sqlite:///:memory:", "mysql://ada:secret@host/db", "postgresql"])
def test_a_url_of_nothing_that_can_keep_a_ledger(url: str) -> None:
    with pytest.raises(UsageError, match=r"sqlite:////path/to/ledger\.db") as raised:
        SqlLedger(url)
    assert "secret" not in str(raised.value)


def test_a_password_is_never_told() -> None:
    error = message_of("postgresql://ada:secret@127.0.0.1:1/ledger")
    assert isinstance(error, Unavailable)
    assert "127.0.0.1:1/ledger" in str(error)
    assert "secret" not in str(error)
