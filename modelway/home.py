"""The directories of a home: made before anything starts, private to their owner."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modelway.settings import Settings
from registry.errors import UsageError

_PRIVATE = 0o700


def prepare_home(settings: Settings) -> None:
    """Create every directory of the home that is missing, and the socket directory. Idempotent.

    Raises:
        UsageError: A directory cannot be created or written, or the socket directory is not private to this user.
    """
    make_private(settings.home, what="home", next_step="Make it writable, or set MODELWAY_HOME to another directory.")
    for directory in (
        settings.artifacts,
        settings.archives,
        settings.nodes_dir,
        settings.gateway_dir,
        settings.logs,
        settings.run_dir,
    ):
        make_private(directory, what="directory of the home", next_step="Make it writable, or set MODELWAY_HOME to another directory.")
    prepare_socket_dir(settings)


def prepare_socket_dir(settings: Settings) -> Path:
    """Create the directory of Unix sockets with mode 0700, and return it.

    Whoever owns this directory can put its own sockets where ours should be, so one that exists already must be a
    directory of this user; /tmp is open to everybody.

    Raises:
        UsageError: It is a link, or another user's, or cannot be created.
    """
    directory = settings.socket_dir
    next_step = "Remove it, or set MODELWAY_HOME to a shorter path."
    make_private(directory, what="socket directory", next_step=next_step)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(f"the socket directory is not a directory of this user ({directory}, owner uid {status.st_uid})", next_step)
    if stat.S_IMODE(status.st_mode) != _PRIVATE:
        directory.chmod(_PRIVATE)
    return directory


def make_private(directory: Path, *, what: str, next_step: str) -> None:
    """Create a directory with mode 0700 unless it exists; its parents too, with the usual mode.

    Raises:
        UsageError: It cannot be created, or it exists and is not writable.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=_PRIVATE, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the {what} ({directory}: {error.strerror})", next_step) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write in the {what} ({directory})", next_step)
