"""Programs that write to a ledger in a process of their own, so that a test can race or kill them.

python -m support.ledger_writer notes URL              append events for ever; print each acknowledged sequence number
python -m support.ledger_writer die-in-commit URL      append an event, and be killed -9 just before it is committed
python -m support.ledger_writer promote URL ACTOR      for each line EXPECT of stdin: try to promote; print what came of it
python -m support.ledger_writer open URL               wait for a line of stdin, then append an event of release 1, or the release
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy import event as sa_event

from registry.errors import Conflict
from registry.ledger_sql import SqlLedger
from support.ledger_entries import draft, note
from support.worlds import NOW


def start(*args: str) -> subprocess.Popen[str]:
    """Start one of the programs; wait for it, close its pipes and end it with `end`."""
    tests = Path(__file__).parents[1]
    env = {"PATH": os.defpath, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    argv = [sys.executable, "-W", "error", "-m", "support.ledger_writer", *args]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, bufsize=1)


def end(process: subprocess.Popen[str]) -> str:
    """Kill it if it still runs; what it had printed and nobody had read."""
    process.kill()
    rest, _ = process.communicate(timeout=20)
    return rest


def _say(text: object) -> None:
    print(text, flush=True)  # noqa: T201  this is what the program is for


def _notes(ledger: SqlLedger) -> None:
    seq = len(ledger.entries())
    while True:
        ledger.append_event(note(1, seq=seq + 1, filler="x" * 3000))  # some entries need more than one page
        seq += 1
        _say(seq)


def _die_in_commit(ledger: SqlLedger) -> None:
    ledger.entries()
    sa_event.listen(ledger._engine, "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    ledger.append_event(note(1, lost=True))


def _promote(ledger: SqlLedger, actor: str) -> None:
    ledger.entries()
    _say("ready")
    for line in sys.stdin:
        expect = int(line)
        try:
            release = ledger.append_release(draft(expect + 1, actor=actor), expect=expect or None, at=NOW)
        except Conflict as conflict:
            _say(f"lost {conflict}")
        else:
            _say(f"won {release.id}")


def _open(ledger: SqlLedger) -> None:
    _say("ready")
    sys.stdin.readline()
    try:
        ledger.append_release(draft(1), expect=None, at=NOW)
    except Conflict:
        ledger.append_event(note(1))
    _say("done")


if __name__ == "__main__":
    what, url, *rest = sys.argv[1:]
    of_url = SqlLedger(url)
    {"notes": _notes, "die-in-commit": _die_in_commit, "promote": _promote, "open": _open}[what](of_url, *rest)
