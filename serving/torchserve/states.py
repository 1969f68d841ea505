"""From TorchServe's description of a model version, and its workers' own status files, to a load state. Pure.

TorchServe says of a worker only READY or not; one that crashes at load looks for minutes like one that loads. What the
worker wrote itself tells them apart at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serving.ports import LoadedArchive, LoadState
from serving.runtime.modelway_runtime import status

_CLOCK_STEP_S = 1.0  # TorchServe's start times have whole seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport:
    """The status file of one worker slot."""

    state: str
    reason: str
    at: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerReport:
        """Of the file's content. Raises KeyError, TypeError, ValueError."""
        return cls(state=str(data["state"]), reason=str(data["reason"]), at=float(data["at"]))

    @property
    def is_failing(self) -> bool:
        """Whether this load failed, or is the retry of one that did."""
        return self.state == status.FAILED or (self.state == status.LOADING and bool(self.reason))


def loaded_archive(description: Mapping[str, Any], reports: Mapping[str, WorkerReport]) -> LoadedArchive:
    """The state of one model version.

    Args:
        description: One element of the answer of `GET /models/{model}/all`.
        reports: Worker slot (the `id` in the description) -> its report.
    """
    workers = description.get("workers") or []
    num_wanted = int(description["minWorkers"])
    num_ready = sum(worker["status"] == "READY" for worker in workers)
    others = [worker for worker in workers if worker["status"] != "READY"]
    reasons = [reason for worker in others if (reason := _failure(worker, reports.get(str(worker["id"]))))]
    if num_wanted == 0 and not workers:
        state = LoadState.REGISTERED
    elif num_ready >= num_wanted:
        state = LoadState.READY
    elif num_ready > 0:
        state = LoadState.DEGRADED
    else:
        state = LoadState.FAILED if reasons else LoadState.LOADING
    detail = "" if state is LoadState.READY else "; ".join(dict.fromkeys(reasons))
    return LoadedArchive(model=str(description["modelName"]), engine_version=str(description["modelVersion"]), state=state, detail=detail)


def _failure(worker: Mapping[str, Any], report: WorkerReport | None) -> str:
    # A report that is older than the worker is of a slot's earlier life.
    if report is None or not report.is_failing or report.at < _started_at(worker) - _CLOCK_STEP_S:
        return ""
    return report.reason or "the worker could not load"


def _started_at(worker: Mapping[str, Any]) -> float:
    try:
        started = datetime.fromisoformat(str(worker["startTime"]))
    except (KeyError, ValueError):
        return 0.0
    return (started if started.tzinfo else started.replace(tzinfo=UTC)).timestamp()
