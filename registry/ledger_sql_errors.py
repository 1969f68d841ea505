"""What an error of the ledger's database means for a user. Knows SQLite's and PostgreSQL's codes, and runs no statement."""

from __future__ import annotations

from registry.errors import Corrupt, ModelwayError, TimedOut, Unavailable

_RESTORE = "Restore it from a backup, or name another one with MODELWAY_LEDGER_URL."
_LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "57014", "40001", "40P01")
_DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "42P01", "42703", "42P10")
_NEXT_STEPS = {
    "SQLITE_CANTOPEN": "Check that its directory exists and that you may write there.",
    "SQLITE_READONLY": "Check that you may write the file and its directory.",
    "SQLITE_PERM": "Check that you may write the file and its directory.",
    "SQLITE_FULL": "Free some space on its disk.",
    "SQLITE_IOERR": "Check its disk.",
    "28": "Check user and password in MODELWAY_LEDGER_URL.",
    "3D": "Create the database or the user, or correct MODELWAY_LEDGER_URL.",
    "42501": "Give the database's user the right to create and write tables.",
    "53100": "Free some space on the database server's disk.",
}
_REFUSALS = {"password authentication failed": "28", "no pg_hba.conf entry": "28", "does not exist": "3D"}
_ASK_SERVER = "Check that the database server runs and that MODELWAY_LEDGER_URL is right."
_ASK_FILE = "Check the file and its directory."


def translate_database_error(error: Exception, ledger: str) -> ModelwayError:
    """The Modelway error for one of SQLAlchemy, sqlite3, psycopg or the operating system.

    Args:
        ledger: The ledger's file, or its URL without the password.
    """
    original = getattr(error, "orig", None) or error
    code = str(getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None) or "")
    text = " ".join(str(original).split()) or type(original).__name__
    if code.startswith(_LOCKED):
        return TimedOut(f"the ledger stayed busy ({ledger}: {text})", "Try again; if it lasts, look for a process that holds it.")
    if code.startswith("SQLITE_NOTADB"):
        return Corrupt(f"not a ledger ({ledger}: {text})", _RESTORE)
    if code.startswith(_DAMAGED) or text.startswith(("no such table", "no such column", "has no column")):
        return Corrupt(f"the ledger is damaged ({ledger}: {text})", _RESTORE)
    # PostgreSQL's driver has no code for a connection that was refused, only the server's words.
    code = code or next((known for words, known in _REFUSALS.items() if words in text), "")
    known = next((step for prefix, step in _NEXT_STEPS.items() if code.startswith(prefix)), None)
    return Unavailable(f"the ledger cannot be used ({ledger}: {text})", known or (_ASK_SERVER if "://" in ledger else _ASK_FILE))


def lost_record(ledger: str, what: str) -> Corrupt:
    """A table or row that every ledger has is not there."""
    return Corrupt(f"the ledger has lost its {what} ({ledger})", _RESTORE)


def wrong_end(expected: int, found: int) -> Corrupt:
    """The last row is not the one that the head names."""
    return Corrupt(
        f"the ledger does not end where its head says (with entry {expected}; the last one is {found})",
        "Somebody changed the ledger: restore it from a backup.",
    )


def other_schema(ledger: str, found: int | None, known: int) -> Unavailable:
    """Written by another release of Modelway."""
    return Unavailable(
        f"the ledger has another schema ({ledger}: version {found}, this Modelway knows {known})", "Use the Modelway that wrote it."
    )
