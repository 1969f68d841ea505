"""The sockets that a node's workers open themselves (`serving.runtime.modelway_runtime.listener`)."""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Mapping
from pathlib import Path

from registry.errors import TimedOut, Unavailable
from serving import unix_http
from serving.runtime.modelway_runtime.listener import METRICS_PATH
from serving.runtime.modelway_runtime.sockets import prefix_of

_METRICS_TIMEOUT_S = 2.0


class WorkerSockets:
    """All worker sockets of one node, those of dead workers included: a worker cannot take its own away."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def paths(self) -> tuple[str, ...]:
        """The sockets, sorted."""
        return tuple(sorted(str(path) for path in self._directory.glob("*.sock")))

    def remove(self, model: str, engine_version: str) -> None:
        """Remove those of an archive that was unloaded."""
        for leftover in self._directory.glob(f"{prefix_of(model, engine_version)}*"):
            leftover.unlink(missing_ok=True)

    def infer(self, path: str, target: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> tuple[int, bytes]:
        """One request straight to a worker: HTTP status and body. Raises Unavailable, TimedOut."""
        try:
            return unix_http.call(Path(path), "POST", target, timeout_s=timeout_s, body=body, headers=headers)
        except TimeoutError as error:
            raise TimedOut(f"the worker at {path} did not answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the worker at {path} does not answer ({type(error).__name__}: {error})", "It is restarted.") from error

    def metrics_text(self) -> str:
        """What all living workers count, as one Prometheus text."""
        texts = []
        for path in self.paths():
            try:
                status, text = unix_http.call(Path(path), "GET", METRICS_PATH, timeout_s=_METRICS_TIMEOUT_S)
            except (OSError, http.client.HTTPException):
                continue  # dead, or busy dying
            if status == 200:
                texts.append(text.decode())
        return merge_metrics(texts)


def merge_metrics(texts: Iterable[str]) -> str:
    """Prometheus texts as one: each family once, with the samples of all.

    The format wants all samples of a family together:
    https://prometheus.io/docs/instrumenting/exposition_formats/#grouping-and-sorting
    """
    families: dict[str, list[str]] = {}
    for text in texts:
        rows: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                rows = families.setdefault(line.split(" ", 3)[2], [])
            if line not in rows:  # the comments of a family that another worker has too
                rows.append(line)
    return "".join(f"{line}\n" for rows in families.values() for line in rows)
