"""A private PostgreSQL server for tests: own directory, Unix socket only, stopped when the test run ends.

url = new_database()        # postgresql://postgres@/test_1?host=/tmp/modelway-pg-...
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NOT_FOUND = "PostgreSQL server binaries not found"
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class PostgresqlServer:
    """A running server.

    Attributes:
        directory: Where its data and its socket lie.
    """

    programs: Path
    directory: Path

    def new_database(self) -> str:
        """URL of a new, empty database."""
        name = f"test_{next(_numbers)}"
        self.run("psql", "-h", str(self.directory), "-U", "postgres", "-qc", f"CREATE DATABASE {name}")
        return f"postgresql://postgres@/{name}?host={self.directory}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = f"-k {self.directory} -c listen_addresses='' -c fsync=on"
        self.run("pg_ctl", "-w", "-D", f"{self.directory}/data", "-l", f"{self.directory}/log", "-o", options, "start")

    def kill(self) -> None:
        """Stop it as a crash would."""
        self.run("pg_ctl", "-w", "-D", f"{self.directory}/data", "-m", "immediate", "stop")

    def run(self, program: str, *args: str) -> None:
        """Run one of its programs, as a user that is not root: the server refuses to be that."""
        argv: Sequence[str] = (str(self.programs / program), *args)
        if os.getuid() == 0:
            argv = ("runuser", "-u", "postgres", "--", *argv)
        # Files, not pipes: the server inherits them, and would keep a pipe open for ever.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=False, timeout=60)
            output.seek(0)
            assert done.returncode == 0, output.read().decode()


def new_server() -> PostgresqlServer:
    """A server of one's own, started. Skips the test if PostgreSQL is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    if not programs and on_path is None:
        pytest.skip(NOT_FOUND)
    directory = Path(tempfile.mkdtemp(prefix="modelway-pg-"))
    if os.getuid() == 0:
        shutil.chown(directory, "postgres")
    server = PostgresqlServer(programs=(programs[-1] if programs else Path(str(on_path))).parent, directory=directory)
    server.run("initdb", "-D", f"{directory}/data", "-A", "trust", "-U", "postgres", "--no-sync", "--no-locale", "-E", "UTF8")
    server.start()
    return server


def remove_server(server: PostgresqlServer) -> None:
    """Stop it, if it runs, and delete it."""
    if (server.directory / "data/postmaster.pid").exists():
        server.kill()
    shutil.rmtree(server.directory)


@functools.cache
def _shared_server() -> PostgresqlServer:
    server = new_server()
    atexit.register(remove_server, server)
    return server


def new_database() -> str:
    """URL of an empty database on a server that all tests share. Skips the test if PostgreSQL is not installed."""
    return _shared_server().new_database()
