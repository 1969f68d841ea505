"""Where a worker's own socket is: one for each worker slot, named by model, archive and slot.

    <dir>/<model, shortened>.<digest of the archive's manifest>.<slot>.sock

The digest alone tells archives apart (it is part of the engine version); the model is there for who lists the
directory. Without `MODELWAY_WORKER_SOCKET_DIR` (an engine that Modelway did not start) a worker opens no socket.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DIRECTORY_VARIABLE = "MODELWAY_WORKER_SOCKET_DIR"
_MODEL_CHARS = 12  # the whole path may have 107 bytes
LONGEST_NAME = f"{'m' * _MODEL_CHARS}.{'0' * 12}.65535.sock"


def prefix_of(model: str, engine_version: str) -> str:
    """How the names of all sockets of an archive begin."""
    return f"{model[:_MODEL_CHARS]}.{engine_version.rpartition('-')[2]}."


def path_of(directory: Path, model: str, engine_version: str, slot: str) -> Path:
    """The socket of one worker."""
    return directory / f"{prefix_of(model, engine_version)}{slot}.sock"


def path_of_this_process(model: str, engine_version: str) -> Path | None:
    """The socket that this worker is to open; None if nobody asked for one."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return path_of(Path(directory), model, engine_version, worker_slot()) if directory else None


def worker_slot() -> str:
    """The slot in the worker's own arguments (`--sock-name .../.ts.sock.9000`); its process id if there is none."""
    socket_name = sys.argv[sys.argv.index("--sock-name") + 1] if "--sock-name" in sys.argv[:-1] else ""
    return socket_name.rpartition(".")[2] or str(os.getpid())
