"""Log files of child processes: appended to by the child, kept from growing for ever by its supervisor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_LOG_BYTES = 20 << 20
_TAIL_BYTES = 16 << 10


def rotate(log: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move the content of a log that is larger than `max_bytes` to `<log>.1`, replacing the one that is there.

    Copied and truncated, not renamed: a running child keeps its file open. What it writes between the two is lost.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return
    except FileNotFoundError:
        return
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


def last_lines(log: Path, num_lines: int = 10) -> tuple[str, ...]:
    """The last lines of a log, without empty ones; none if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-num_lines:]
