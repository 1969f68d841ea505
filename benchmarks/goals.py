"""The goals that were set, and by how much they are met in a run. Pure: nothing here is typed in by hand but the goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.rates import BINARY, JSON, Rates
from benchmarks.servers.modelway import GATEWAY, SOCKETS, TITLES

TRITON = "Triton"  # both of its entries begin with it; each figure is compared with the better one


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One goal.

    Attributes:
        limit: The ratio that is wanted.
        at_least: Whether more is better.
        found: The ratio that was measured, to the server that is hardest to beat; None if one of the two was not.
        by_server: The ratio to each of the servers that it was compared with.
    """

    text: str
    limit: float
    at_least: bool
    found: float | None
    by_server: Mapping[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def verdict(self) -> str:
        """In words: met, or by how much not."""
        if self.found is None or self.met is None:
            return "not measured"
        if self.met:
            return "met"
        if self.at_least:
            return f"not met: {1 - self.found / self.limit:.0%} too little"
        return f"not met: {self.found / self.limit - 1:.0%} too much"


def of_servers(rates: Rates) -> list[Goal]:
    """Those about the MLP, as ratios in one run."""
    triton = [server for server in rates.servers if server.startswith(TRITON)]
    others = [server for server in rates.servers if server not in TITLES]
    goals = []
    for form, limit in ((BINARY, 3.0), (JSON, 2.5)):
        found = _ratios(triton, lambda base, form=form: rates.ratio_of_best(SOCKETS, base, form))  # type: ignore[misc]
        goals.append(_at_least(f"workers' sockets, {form}: best rate, times Triton's", limit, found))
    for form in (BINARY, JSON):
        found = _ratios(others, lambda base, form=form: rates.ratio_of_best(GATEWAY, base, form))  # type: ignore[misc]
        goals.append(_at_least(f"gateway, {form}: best rate, times the best of all others", 1.0, found))
    for form in (BINARY, JSON):
        found = _ratios(triton, lambda base, form=form: rates.ratio_of_latency(GATEWAY, base, form, 32, "p99_ms"))  # type: ignore[misc]
        goals.append(_at_most(f"gateway, {form}: p99 at 32 connections, times Triton's", 1.0, found))
    for form in (BINARY, JSON):
        found = _ratios(triton, lambda base, form=form: rates.ratio_of_latency(GATEWAY, base, form, 1, "p50_ms"))  # type: ignore[misc]
        goals.append(_at_most(f"gateway, {form}: p50 at 1 connection, times Triton's", 0.6, found))
    return goals


def of_arithmetic(ratios: dict[str, float]) -> list[Goal]:
    """Where the engine does nearly all of the work: rate times that of the engine in process, by place."""
    return [
        Goal(text=f"{place}: EfficientNet-Lite0, images/s, times ONNX Runtime in process", limit=0.9, at_least=True, found=found)
        for place, found in ratios.items()
    ]


def _at_least(text: str, limit: float, found: Mapping[str, float]) -> Goal:
    return Goal(text=text, limit=limit, at_least=True, found=min(found.values(), default=None), by_server=found)


def _at_most(text: str, limit: float, found: Mapping[str, float]) -> Goal:
    return Goal(text=text, limit=limit, at_least=False, found=max(found.values(), default=None), by_server=found)


def _ratios(bases: Sequence[str], ratio: Callable[[str], float | None]) -> dict[str, float]:
    return {base: found for base in bases if (found := ratio(base)) is not None}
