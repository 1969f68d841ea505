"""The certificate: the measured proof that a variant still is the model. Written by `training`, read by gates."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from registry.errors import UsageError
from registry.names import ModelVersion

_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
_OPPOSITES = {"<=": ">", ">=": "<", "==": "!="}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One measured check with the number that decided.

    A check that says that it passed while its numbers say otherwise cannot be made; one may fail whatever its numbers say.

    Attributes:
        name: What was checked, for example `parity/logits/max_abs_error`.
        passed: Whether the value is within the limit.
        value: The measured number.
        limit: The number it was held against.
        relation: How value and limit relate when the check passes: `<=`, `>=` or `==`.
        detail: What a reader needs to understand the number (batch sizes, sample count).
    """

    name: str
    passed: bool
    value: float
    limit: float
    relation: str = "<="
    detail: str = ""

    def __post_init__(self) -> None:
        if self.relation not in _RELATIONS:
            raise UsageError(f"unknown relation of check {self.name} ({self.relation!r})", f"Use one of {', '.join(_RELATIONS)}.")
        if self.passed and not _RELATIONS[self.relation](self.value, self.limit):
            raise UsageError(f"check {self.name} did not pass ({self.value:.6g} is not {self.relation} {self.limit:.6g})")

    def __str__(self) -> str:
        sign = self.relation if self.passed else _OPPOSITES[self.relation]
        return f"{self.name} {self.value:.6g} {sign} {self.limit:.6g}" + (f" ({self.detail})" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        """As stored in `certificate.json`."""
        return {
            "name": self.name,
            "passed": self.passed,
            "value": _json_number(self.value),
            "limit": _json_number(self.limit),
            "relation": self.relation,
            "detail": self.detail,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Check:
        """The inverse of `to_json`."""
        return cls(**{**data, "value": float(data["value"]), "limit": float(data["limit"])})


def _json_number(value: float) -> float | str:
    return value if isfinite(value) else str(value)  # JSON has no NaN


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """The proof for one variant of one version.

    Attributes:
        version: The version that was exported.
        source_sha256: Digest of the weights that the variant was made from.
        variant: The variant's name.
        checks: All checks; the certificate passes if there is at least one and every one passed.
        facts: Measurements without a limit; JSON values only, None for what JSON cannot hold. A variant that did not load
            or did not answer has fewer of them. Readers use:
            `latency`: `batch_<n>` -> `p50_ms`, `p99_ms`, `rows_per_s`, `calls`;
            `quality`: the measure's name, under which are `eager`, `variant`, `change`, `interval` (low, high of the change);
            `parity`: `batch_<n>` and `held_out` -> output -> `max_abs`, `mean_abs`, `max_rel`, `mean_rel`, `min_cosine`, ...;
            `size_bytes`, `size_ratio`, `provider`, `placement`, `operators`, `operators_fp32`, `layer_errors`, `labels`.
    """

    version: ModelVersion
    source_sha256: str
    variant: str
    checks: tuple[Check, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if something was checked and nothing failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """The failed checks, each with its numbers; one reason if nothing was checked."""
        if not self.checks:
            return ("nothing was checked",)
        return tuple(str(check) for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """As stored in `certificate.json`."""
        return {
            "version": str(self.version),
            "source_sha256": self.source_sha256,
            "variant": self.variant,
            "passed": self.passed,
            "checks": [check.to_json() for check in self.checks],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_json`; `passed` is derived again, never read."""
        model, _, version = str(data["version"]).partition("/")
        return cls(
            version=ModelVersion(model, int(version)),
            source_sha256=str(data["source_sha256"]),
            variant=str(data["variant"]),
            checks=tuple(Check.from_json(check) for check in data["checks"]),
            facts=dict(data["facts"]),
        )
