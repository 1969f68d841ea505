"""What a worker says of itself to the node's supervisor: one small file per worker slot, replaced at each change.

TorchServe's API shows a worker that cannot load as one that is still loading, for minutes; the file says at once.
It holds no request data. Without `MODELWAY_WORKER_STATUS_DIR` (an engine that Modelway did not start) nothing is written.

    <dir>/<model>/<engine version>/<slot>.json
    {"state": "failed", "reason": "...", "pid": 12, "engine_pid": 7, "at": 1700000000.0, "deaths": 0}

`deaths` counts the loads of this slot that failed, one after the other; the engine retries them. A load that ended
without a word (killed, out of memory, a crash in native code) is seen by the next one, and the second in a row is a
failure. `reason` stays while a failed load is tried again: a loading worker that has one is failing.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from .sockets import worker_slot

DIRECTORY_VARIABLE = "MODELWAY_WORKER_STATUS_DIR"
LOADING, READY, FAILED = "loading", "ready", "failed"
_SILENT_DEATHS = 2  # one may be anybody's kill


class WorkerStatus:
    """The status file of this worker; does nothing where there is no directory for it."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._deaths = 0
        self._reason = ""

    @classmethod
    def of_this_process(cls, model: str, engine_version: str) -> WorkerStatus:
        """Named by the environment and by the worker's slot."""
        directory = os.environ.get(DIRECTORY_VARIABLE)
        if not directory:
            return cls(None)
        return cls(Path(directory) / model / engine_version / f"{worker_slot()}.json")

    def loading(self) -> None:
        """The process begins to load."""
        before = _read(self._file) if self._file is not None else {}
        same_engine = before.get("engine_pid") == os.getppid() and before.get("pid") != os.getpid()
        if same_engine and before.get("state") in (LOADING, FAILED):
            self._deaths = int(before.get("deaths", 0)) + 1
            self._reason = str(before.get("reason", ""))
            if not self._reason and self._deaths >= _SILENT_DEATHS:
                self._reason = "the worker died again and again while it was loading, without a word"
        self._write(LOADING, self._reason)

    def ready(self) -> None:
        """The model is loaded and has proved its golden set."""
        self._deaths = 0
        self._write(READY, "")

    def failed(self, reason: str) -> None:
        """The model cannot be served; `reason` is one line."""
        self._write(FAILED, reason)

    def _write(self, state: str, reason: str) -> None:
        if self._file is None:
            return
        pids = {"pid": os.getpid(), "engine_pid": os.getppid()}
        content = {"state": state, "reason": reason, **pids, "at": time.time(), "deaths": self._deaths}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(self._file)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
