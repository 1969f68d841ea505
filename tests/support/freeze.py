"""Freeze one thread of a child process, which no signal can do: `ptrace`, from the thread that started it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH, _WALL = 0x4206, 0x4207, 17, 0x40000000


def thread_named(pid: int, name: str) -> int:
    """Id of the thread of that name."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return next(int(task.name) for task in tasks if (task / "comm").read_text().strip() == name)


@contextmanager
def frozen(tid: int) -> Iterator[None]:
    """While the block runs, the thread does not."""
    _ptrace(_SEIZE, tid)
    _ptrace(_INTERRUPT, tid)
    os.waitpid(tid, _WALL)
    try:
        yield
    finally:
        _ptrace(_DETACH, tid)


def _ptrace(request: int, tid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, tid, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x} of thread {tid}")
