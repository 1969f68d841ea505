"""How a release gets its traffic: at once, or in steps that a verdict must pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any

from registry.errors import UsageError

DEFAULT_CANARY = "1%:30s,10%:60s,50%:60s"
_STEP = re.compile(r"(?P<percent>[0-9]+(\.[0-9]+)?)%:(?P<duration>[0-9]+(\.[0-9]+)?)(?P<unit>s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class StrategyKind(StrEnum):
    """The ways to go live."""

    IMMEDIATE = "immediate"
    CANARY = "canary"


@dataclass(frozen=True, slots=True)
class CanaryStep:
    """A share of the channel's traffic, held for at least `duration_s` seconds and until the verdict passes."""

    percent: float
    duration_s: float

    def __post_init__(self) -> None:
        # Envoy's runtime fractions count in steps of 0.0001%.
        if not (0.0001 <= self.percent < 100 and 0 <= self.duration_s < inf):
            raise UsageError(
                f"invalid canary step ({self})", "Shares lie between 0.0001% and below 100%; the step to 100% is always the last by itself."
            )

    def __str__(self) -> str:
        return f"{self.percent:g}%:{self.duration_s:g}s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """How a release goes live.

    Attributes:
        steps: Canary steps, rising; empty for `immediate`. The final step to 100% is implied.
        min_samples: Answered requests on each side that a verdict needs.
        hold_s: How long a step may stay without a verdict, beyond its duration, before the release is aborted.
        max_error_ratio_increase: Candidate's 5xx ratio minus live's that is still acceptable.
        max_slow_ratio: A request is slow when it takes longer than this multiple of the live release's p95;
            candidates with significantly more slow requests than 5% fail.
    """

    kind: StrategyKind
    steps: tuple[CanaryStep, ...] = ()
    min_samples: int = 50
    hold_s: float = 600.0
    max_error_ratio_increase: float = 0.01
    max_slow_ratio: float = 2.0

    def __post_init__(self) -> None:
        if bool(self.steps) != (self.kind is StrategyKind.CANARY):
            raise UsageError(f"strategy {self.kind} does not go with {len(self.steps)} steps", "Give canary steps with 'canary' only.")
        percents = [step.percent for step in self.steps]
        if percents != sorted(set(percents)):
            raise UsageError(f"canary steps must rise ({', '.join(map(str, self.steps))})", f"For example {DEFAULT_CANARY}.")
        if self.min_samples < 1:
            raise UsageError(f"min_samples must be 1 or more ({self.min_samples})")
        for name in ("hold_s", "max_error_ratio_increase", "max_slow_ratio"):
            if not 0 <= getattr(self, name) < inf:
                raise UsageError(f"{name} must be a number of 0 or more ({getattr(self, name)})")

    def to_json(self) -> dict[str, Any]:
        """As stored in the ledger."""
        return {
            "kind": self.kind.value,
            "steps": [[step.percent, step.duration_s] for step in self.steps],
            "min_samples": self.min_samples,
            "hold_s": self.hold_s,
            "max_error_ratio_increase": self.max_error_ratio_increase,
            "max_slow_ratio": self.max_slow_ratio,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Strategy:
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "kind": StrategyKind(data["kind"]),
                "steps": tuple(CanaryStep(float(percent), float(duration_s)) for percent, duration_s in data["steps"]),
            }
        )


IMMEDIATE = Strategy(kind=StrategyKind.IMMEDIATE)


def parse_canary_steps(text: str) -> tuple[CanaryStep, ...]:
    """Parse `1%:30s,10%:60s,50%:1m` (share of the traffic, time held).

    Raises:
        UsageError: If a part is not of that form.
    """
    steps = []
    for part in text.split(","):
        match = _STEP.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"not a canary step ({part.strip()!r})", f"Write PERCENT%:SECONDSs, for example {DEFAULT_CANARY}.")
        steps.append(CanaryStep(float(match["percent"]), float(match["duration"]) * _SECONDS[match["unit"]]))
    return tuple(steps)
