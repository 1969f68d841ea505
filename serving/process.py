"""A program that the platform runs, as a value. Adapters describe their process; the supervisor runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSpec:
    """How to start and stop one program.

    Attributes:
        name: Short and unique in a home, for example `node-0`, `gateway`, `controller`, `mlflow`.
        argv: Program and arguments.
        cwd: Working directory; exists when the process is started.
        env: The whole environment of the process; nothing is inherited.
        log: File that stdout and stderr are appended to.
        stop_timeout_s: Seconds between SIGTERM and SIGKILL of its process group.
        owned_paths: Sockets and directories to remove once it is gone.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    log: Path
    stop_timeout_s: float = 10.0
    owned_paths: tuple[Path, ...] = field(default=())
