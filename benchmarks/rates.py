"""What measurements say: medians over the rounds, and ratios of what was measured in the same round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.http_client import Measured

BINARY, JSON = "binary", "JSON"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
        fraction: Of the server's best closed-loop rate, the arrival rate of an open loop; 0 is a closed loop.
    """

    server: str
    form: str
    connections: int
    fraction: float
    round: int
    measured: Measured

    @property
    def in_words(self) -> str:
        """For the one who waits."""
        how = f"open loop at {self.fraction:.0%}" if self.fraction else f"{self.connections} connections"
        failed = f", {self.measured.failed} failed: {self.measured.first_failure[:200]}" if self.measured.failed else ""
        found = self.measured
        return (
            f"round {self.round + 1}, {how}, {self.server}, {self.form}: {found.requests_per_s:,.0f} requests/s, "
            f"p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms{failed}"
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The medians of one server over the rounds. All zero if nothing was measured."""

    connections: int = 0
    requests_per_s: float = 0.0
    slowest_per_s: float = 0.0
    fastest_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    failed: int = 0


@dataclass(frozen=True)
class Rates:
    """The cells of one campaign."""

    cells: Sequence[Cell]

    @property
    def servers(self) -> list[str]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(cell.server for cell in self.cells))

    def connections(self) -> list[int]:
        """Of the closed loops."""
        return sorted({cell.connections for cell in self.cells if not cell.fraction})

    def fractions(self) -> list[float]:
        """Of the open loops."""
        return sorted({cell.fraction for cell in self.cells if cell.fraction})

    def summary(self, server: str, form: str, connections: int) -> Summary:
        """Of a closed loop."""
        return _summary([c for c in self._of(server, form) if not c.fraction and c.connections == connections])

    def open_summary(self, server: str, form: str, fraction: float) -> Summary:
        """Of an open loop."""
        return _summary([c for c in self._of(server, form) if c.fraction == fraction])

    def best(self, server: str, form: str) -> Summary:
        """The closed loop with the best median rate."""
        found = [self.summary(server, form, connections) for connections in self.connections()]
        return max(found, key=lambda summary: summary.requests_per_s, default=Summary())

    def failed(self, server: str, form: str) -> int:
        """Failed requests in all cells."""
        return sum(cell.measured.failed for cell in self._of(server, form))

    def failures(self, servers: Sequence[str]) -> list[str]:
        """Each cell of these servers in which something failed, in words."""
        return [cell.in_words for cell in self.cells if cell.measured.failed and cell.server in servers]

    def ratio_of_best(self, server: str, base: str, form: str) -> float | None:
        """How many times the base's best rate: the median over the rounds of the ratio of each round's best; None if not measured.

        Example: rounds of 30 and 10, 15 and 5 (a machine that halved its speed), 40 and 10: the ratios are 3, 3 and 4, and 3 is told.
        """
        mine, theirs = self._best_by_round(server, form), self._best_by_round(base, form)
        ratios = [mine[number] / theirs[number] for number in mine if theirs.get(number)]
        return statistics.median(ratios) if ratios else None

    def ratio_of_latency(self, server: str, base: str, form: str, connections: int, percentile: str) -> float | None:
        """The same of `p50_ms` or `p99_ms` at a number of connections; below 1 is faster."""
        mine, theirs = (
            self._latency_by_round(server, form, connections, percentile),
            self._latency_by_round(base, form, connections, percentile),
        )
        ratios = [mine[number] / theirs[number] for number in mine if mine[number] and theirs.get(number)]
        return statistics.median(ratios) if ratios else None

    def _of(self, server: str, form: str) -> list[Cell]:
        return [cell for cell in self.cells if (cell.server, cell.form) == (server, form)]

    def _best_by_round(self, server: str, form: str) -> dict[int, float]:
        found: dict[int, float] = {}
        for cell in self._of(server, form):
            if not cell.fraction:
                found[cell.round] = max(found.get(cell.round, 0.0), cell.measured.requests_per_s)
        return found

    def _latency_by_round(self, server: str, form: str, connections: int, percentile: str) -> dict[int, float]:
        cells = [cell for cell in self._of(server, form) if not cell.fraction and cell.connections == connections]
        return {cell.round: float(getattr(cell.measured, percentile)) for cell in cells}


def _summary(cells: Sequence[Cell]) -> Summary:
    if not cells:
        return Summary()
    rates = [cell.measured.requests_per_s for cell in cells]
    return Summary(
        connections=cells[0].connections,
        requests_per_s=statistics.median(rates),
        slowest_per_s=min(rates),
        fastest_per_s=max(rates),
        p50_ms=statistics.median(cell.measured.p50_ms for cell in cells),
        p99_ms=statistics.median(cell.measured.p99_ms for cell in cells),
        failed=sum(cell.measured.failed for cell in cells),
    )
