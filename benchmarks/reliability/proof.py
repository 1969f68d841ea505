"""What a proof is given and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelway.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A running platform that asks for API keys.

    Attributes:
        key: A key that may do everything.
        model: A model [N, 4] -> [N, 3] that answers NaN for rows with a value above 1000; see `tests/support/bundles.py`.
        slow_model: One of the same shapes that takes some hundred milliseconds for a batch of any size.
        planted: Secrets that were put into the environment of `modelway up`, by the name of the variable.
    """

    settings: Settings
    key: str
    model: str
    slow_model: str = ""
    planted: Mapping[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Of the gateway, on 127.0.0.1."""
        return self.settings.gateway_port

    @property
    def logs(self) -> Path:
        """Where the platform's programs write."""
        return self.settings.logs


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One promise, looked at.

    Attributes:
        figures: What was measured, in the order in which it is shown.
        problems: What did not hold; the promise holds if there is none.
    """

    promise: str
    title: str
    figures: Mapping[str, str]
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return not self.problems
