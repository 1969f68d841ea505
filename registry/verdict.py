"""What measurements say of a candidate: the values that `monitoring` computes and `serving` acts on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """The four values of a verdict. No data is never success."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome with its reasons; each reason carries the numbers that decided."""

    outcome: Outcome
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As recorded in the ledger."""
        return {"outcome": self.outcome.value, "reasons": list(self.reasons)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseCounters:
    """Cumulative counters of one release, as the gateway counts them.

    Attributes:
        num_requests: Answered requests.
        num_errors: Those answered with 5xx, by the model or by the gateway for it.
        latency_buckets: Upper bound in ms -> number of requests at or below it (cumulative, ends with infinity).
    """

    num_requests: int = 0
    num_errors: int = 0
    latency_buckets: Mapping[float, int] = field(default_factory=dict)

    def since(self, start: ReleaseCounters) -> ReleaseCounters | None:
        """What was counted after `start`; None if the counter was reset in between."""
        if self.num_requests < start.num_requests or self.num_errors < start.num_errors:
            return None
        return ReleaseCounters(
            num_requests=self.num_requests - start.num_requests,
            num_errors=self.num_errors - start.num_errors,
            latency_buckets={bound: n - start.latency_buckets.get(bound, 0) for bound, n in self.latency_buckets.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """As recorded in the ledger. Bounds become strings, as JSON keys are."""
        return {
            "num_requests": self.num_requests,
            "num_errors": self.num_errors,
            "latency_buckets": {str(bound): n for bound, n in self.latency_buckets.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ReleaseCounters:
        """The inverse of `to_json`."""
        return cls(
            num_requests=int(data["num_requests"]),
            num_errors=int(data["num_errors"]),
            latency_buckets={float(bound): int(n) for bound, n in data["latency_buckets"].items()},
        )
