"""The ledger in a relational database: SQLite by default, PostgreSQL by URL. The only file that talks to SQLAlchemy.

    ledger_entries   seq, at, kind ("release" or the event's), release_id, model, channel, replaces, body, prev_hash, hash
    ledger_head      one row: how many entries there are, and the last one's hash
    ledger_lease     one row: holder, fencing token and end of the controller's lease
    ledger_meta      one row: the schema's version

Writers are serialized: a transaction that writes first locks the whole file (SQLite) or the head's row (PostgreSQL), so
what it reads is what it changes. The compare-and-set of a release is checked under that lock, and once more by the
database itself: (model, channel, replaces) is unique, so a release has at most one successor whatever a writer does.
Readers see one moment and block nobody.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy.engine import URL, make_url

from registry.errors import Conflict, ModelwayError, UsageError
from registry.lease_terms import LeaseGrant, check_fence, given_up, grant, renewed
from registry.ledger_chain import EMPTY, RELEASE, Head, LedgerRow, decode, head_after, make_row, verify_chain
from registry.ledger_refusals import ends_before, release_conflict, unknown_release
from registry.ledger_sql_errors import lost_record, other_schema, translate_database_error, wrong_end
from registry.release import Event, Release, ReleaseDraft

SCHEMA_VERSION = 1
_SCHEMA_LOCK = 7_042_681_193  # PostgreSQL advisory lock of first opens; any number that is ours
_LOCK_RETRY_S = 0.01
_WRITES = "modelway_writes"

_schema = sa.MetaData()
_entries = sa.Table(
    "ledger_entries",
    _schema,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("release_id", sa.Integer, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("channel", sa.Text),
    sa.Column("replaces", sa.Integer),  # 0 for a channel's first release: NULLs would never be equal
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.UniqueConstraint("model", "channel", "replaces", name="ledger_one_successor"),
)
_IS_RELEASE = _entries.c.kind == RELEASE
sa.Index("ledger_release_ids", _entries.c.release_id, unique=True, sqlite_where=_IS_RELEASE, postgresql_where=_IS_RELEASE)
_head = sa.Table(
    "ledger_head",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("num_entries", sa.Integer, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
_lease = sa.Table(
    "ledger_lease",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Text, nullable=False),
)
_meta = sa.Table("ledger_meta", _schema, sa.Column("schema_version", sa.Integer, nullable=False))

T = TypeVar("T")


class SqlLedger:
    """Implements `registry.ports.Ledger` and `LeaseStore`. Safe for many threads and processes.

    Opening is lazy: the database is touched, and its tables made, by the first call. An append whose answer is lost
    (Unavailable while the database goes down) may have been made: repeating a release then gives a Conflict that names it.

    Args:
        url: `sqlite:////path/to/ledger.db` or `postgresql://user:password@host/database`.
        timeout_s: Seconds to wait for a lock or a connection; then TimedOut or Unavailable.

    Raises:
        UsageError: The URL is none, or of another database, or its driver is not installed.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._url = _parse_url(url)
        self._engine = _sqlite_engine(self._url, timeout_s) if self._is_sqlite else _postgresql_engine(self._url, timeout_s)
        self._opening = threading.Lock()
        self._opened = False

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True) if not self._is_sqlite else str(self._url.database)

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Close the connections. The ledger can be used again afterwards."""
        self._engine.dispose()

    # --- registry.ports.Ledger

    def append_release(self, draft: ReleaseDraft, *, expect: int | None, at: datetime, fence: int | None = None) -> Release:
        """See `registry.ports.Ledger`."""

        def append(connection: sa.Connection) -> Release:
            head = _intact_head(connection)
            newest = _newest_release(connection, draft.model, draft.channel)
            if (newest.id if newest is not None else None) != expect:
                raise release_conflict(draft, expect, newest)
            release = draft.numbered(_num_releases(connection) + 1, replaces=expect, at=at)
            _append(connection, head, release)
            return release

        return self._write(append, fence)

    def append_event(self, event: Event, *, fence: int | None = None) -> None:
        """See `registry.ports.Ledger`."""

        def append(connection: sa.Connection) -> None:
            head = _intact_head(connection)
            num_releases = _num_releases(connection)
            if not 1 <= event.release_id <= num_releases:
                raise unknown_release(event.release_id, num_releases)
            _append(connection, head, event)

        self._write(append, fence)

    def entries(self, after: int = 0) -> Sequence[tuple[int, Release | Event]]:
        """See `registry.ports.Ledger`. The entry `after` itself is checked again too."""

        def read(connection: sa.Connection) -> Sequence[tuple[int, Release | Event]]:
            head = _read_head(connection)
            if after > head.num_entries:
                raise ends_before(after, head.num_entries)
            rows = _read_rows(connection, after)
            start = (after - 1, rows[0].prev_hash) if after > 0 and rows else (0, EMPTY.hash)
            entries = verify_chain(rows, start=start, head=head)
            numbered = zip((row.seq for row in rows), entries, strict=True)
            return [(seq, entry) for seq, entry in numbered if seq > after]

        with self._transaction(writes=False) as connection:
            return read(connection)

    # --- registry.ports.LeaseStore

    def acquire_lease(self, holder: str, ttl_s: float, now: datetime) -> LeaseGrant | None:
        """See `registry.ports.LeaseStore`."""

        def acquire(connection: sa.Connection) -> LeaseGrant | None:
            granted = grant(_read_lease(connection), holder, ttl_s, now)
            return _write_lease(connection, granted) if granted is not None else None

        return self._write(acquire)

    def renew_lease(self, token: int, ttl_s: float, now: datetime) -> LeaseGrant:
        """See `registry.ports.LeaseStore`."""
        return self._write(lambda connection: _write_lease(connection, renewed(_read_lease(connection), token, ttl_s, now)))

    def release_lease(self, token: int) -> None:
        """See `registry.ports.LeaseStore`."""

        def give_up(connection: sa.Connection) -> None:
            lease = given_up(_read_lease(connection), token)
            if lease is not None:
                _write_lease(connection, lease)

        self._write(give_up)

    # --- transactions

    def _write(self, work: Callable[[sa.Connection], T], fence: int | None = None) -> T:
        """Run `work` alone among all writers, committed and on disk when this returns."""
        with self._transaction(writes=True) as connection:
            _read_head(connection, lock=True)
            if fence is not None:
                check_fence(_read_lease(connection), fence)
            return work(connection)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[sa.Connection]:
        with self._translated():
            self._open()
            with self._begin(writes=writes) as connection:
                yield connection

    @contextmanager
    def _begin(self, *, writes: bool) -> Iterator[sa.Connection]:
        options: dict[str, Any] = {_WRITES: writes}
        if not self._is_sqlite:
            options["isolation_level"] = "READ COMMITTED" if writes else "REPEATABLE READ"
        with self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def _open(self) -> None:
        """Make the schema if the database is new; check its version if it is not. Once per object."""
        with self._opening:
            if self._opened:
                return
            with self._begin(writes=True) as connection:
                if not self._is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
                _make_schema(connection, str(self))
            if self._is_sqlite and not str(self._url.database).startswith("file:"):
                _sync_directory(Path(str(self._url.database)).absolute().parent)
            self._opened = True

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ModelwayError:
            raise
        except sa.exc.IntegrityError as error:
            raise Conflict(f"another writer changed the ledger at the same moment ({self})", "Look again and decide again.") from error
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise translate_database_error(error, str(self)) from error


# --- engines


def _parse_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        # Not the text itself: it may hold a password.
        raise UsageError("the ledger's URL is none", "Write sqlite:////path/to/ledger.db or postgresql://user@host/database.") from None
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise UsageError(
        f"the ledger cannot be kept there ({url.render_as_string(hide_password=True)})",
        "Use a SQLite file (sqlite:////path/to/ledger.db) or PostgreSQL (postgresql://user@host/database).",
    )


def _sqlite_engine(url: URL, timeout_s: float) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": timeout_s}, pool_timeout=timeout_s)

    @sa_event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says, not where sqlite3 guesses
        _use_write_ahead_log(connection, timeout_s)
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on disk when it returns

    @sa_event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction that reads first and locks later fails if somebody wrote in between: so writers lock at once.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Readers do not block the writer then; the mode is kept in the file.

    Two first opens that both change the mode could wait for each other for ever, so SQLite fails one of them at once,
    whatever its busy timeout: that one tries again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_RETRY_S)


def _postgresql_engine(url: URL, timeout_s: float) -> sa.Engine:
    limit_ms = round(timeout_s * 1000)
    arguments = {
        "connect_timeout": max(2, round(timeout_s)),  # libpq takes less than 2 s for 2 s
        "options": f"-c lock_timeout={limit_ms} -c statement_timeout={limit_ms} -c synchronous_commit=on",
        "application_name": "modelway-ledger",
    }
    try:
        # Pre-ping: a connection that died while it was idle is replaced instead of failing a release.
        return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_timeout=timeout_s)
    except ImportError as error:
        raise UsageError("the PostgreSQL driver is not installed (psycopg)", "Run `pip install 'modelway[postgresql]'`.") from error


def _make_schema(connection: sa.Connection, ledger: str) -> None:
    """Called under a lock that keeps other first opens out."""
    existing = set(sa.inspect(connection).get_table_names()) & set(_schema.tables)
    if not existing:
        _schema.create_all(connection)
        connection.execute(_meta.insert().values(schema_version=SCHEMA_VERSION))
        connection.execute(_head.insert().values(id=1, **asdict(EMPTY)))
        return
    if existing != set(_schema.tables):
        raise lost_record(ledger, f"table {min(set(_schema.tables) - existing)}")
    version = connection.execute(sa.select(_meta.c.schema_version)).scalar_one_or_none()
    if version != SCHEMA_VERSION:
        raise other_schema(ledger, version, SCHEMA_VERSION)


def _sync_directory(directory: Path) -> None:
    """Make the new file's name durable too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- statements


def _read_head(connection: sa.Connection, *, lock: bool = False) -> Head:
    query = sa.select(_head.c.num_entries, _head.c.hash).where(_head.c.id == 1)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise lost_record("the ledger", "head record")
    return Head(num_entries=row.num_entries, hash=row.hash)


def _read_rows(connection: sa.Connection, after: int) -> list[LedgerRow]:
    """The rows from `after` on; all of them for 0, also such as were slipped in below 1."""
    query = sa.select(_entries).order_by(_entries.c.seq)
    found = connection.execute(query.where(_entries.c.seq >= after) if after > 0 else query)
    return [LedgerRow(**row) for row in found.mappings()]


def _newest_release(connection: sa.Connection, model: str, channel: str) -> Release | None:
    of_channel = (_IS_RELEASE, _entries.c.model == model, _entries.c.channel == channel)
    query = sa.select(_entries.c.body).where(*of_channel).order_by(_entries.c.seq.desc()).limit(1)
    body = connection.execute(query).scalar_one_or_none()
    release = decode(RELEASE, body) if body is not None else None
    assert release is None or isinstance(release, Release)
    return release


def _num_releases(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.max(_entries.c.release_id)).where(_IS_RELEASE)).scalar_one() or 0)


def _intact_head(connection: sa.Connection) -> Head:
    """The head, if the ledger ends with it. Writing on otherwise would hide what happened. Raises Corrupt."""
    head = _read_head(connection)
    last = connection.execute(sa.select(_entries.c.seq, _entries.c.hash).order_by(_entries.c.seq.desc()).limit(1)).one_or_none()
    end = Head(num_entries=last.seq, hash=last.hash) if last is not None else EMPTY
    if end != head:
        raise wrong_end(head.num_entries, end.num_entries)
    return head


def _append(connection: sa.Connection, head: Head, entry: Release | Event) -> None:
    row = make_row(entry, head)
    connection.execute(_entries.insert().values(**asdict(row)))
    connection.execute(_head.update().where(_head.c.id == 1).values(**asdict(head_after(row))))


def _read_lease(connection: sa.Connection) -> LeaseGrant | None:
    row = connection.execute(sa.select(_lease).where(_lease.c.id == 1)).one_or_none()
    if row is None:
        return None
    return LeaseGrant(holder=row.holder, token=row.token, expires_at=datetime.fromisoformat(row.expires_at))


def _write_lease(connection: sa.Connection, lease: LeaseGrant) -> LeaseGrant:
    values = {"holder": lease.holder, "token": lease.token, "expires_at": lease.expires_at.isoformat()}
    if connection.execute(_lease.update().where(_lease.c.id == 1).values(**values)).rowcount == 0:
        connection.execute(_lease.insert().values(id=1, **values))
    return lease
