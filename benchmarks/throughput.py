"""Requests per second and latency of Modelway, of its node alone, of stock TorchServe, and of the engine alone, in interleaved rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import in_process
from benchmarks.http_client import Cell, Target, measure
from benchmarks.mlp import MODEL
from benchmarks.platform_under_test import PlatformUnderTest
from benchmarks.stock_torchserve import StockTorchServe

GATEWAY, NODE, STOCK = "Modelway, through the gateway", "Modelway's node, without the gateway", "stock TorchServe"
CONNECTIONS = (1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The medians of one target at a number of connections.

    Attributes:
        range_requests_per_s: Slowest and fastest round.
        ratio_to_stock: Median over the rounds of its requests/s divided by stock TorchServe's in the same round.
    """

    target: str
    connections: int
    requests_per_s: float
    range_requests_per_s: tuple[float, float]
    p50_ms: float
    p99_ms: float
    ratio_to_stock: float


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """The engine alone at a batch size; the ratio is to stock TorchServe at the most connections."""

    batch: int
    rows_per_s: float
    range_rows_per_s: tuple[float, float]
    ratio_to_stock: float


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """All rounds of one run."""

    rounds: Sequence[Sequence[Cell]]
    engine_rounds: Sequence[dict[int, float]]
    duration_s: float
    num_stock_workers: int

    @property
    def failures(self) -> list[str]:
        """Each cell in which something failed, in words."""
        return [
            f"{cell.target} at {cell.connections} connections: {cell.failed} failed, first: {cell.first_failure}"
            for cells in self.rounds
            for cell in cells
            if cell.failed
        ]

    def _series(self, target: str, connections: int) -> list[Cell]:
        """The cells of a target and a number of connections, one of each round."""
        return [next(c for c in cells if (c.target, c.connections) == (target, connections)) for cells in self.rounds]

    @property
    def rows(self) -> list[Row]:
        """The table of servers."""
        return [self._row(target, connections) for connections in CONNECTIONS for target in (GATEWAY, NODE, STOCK)]

    def _row(self, target: str, connections: int) -> Row:
        cells, stock = self._series(target, connections), self._series(STOCK, connections)
        rates = [cell.requests_per_s for cell in cells]
        return Row(
            target=target,
            connections=connections,
            requests_per_s=statistics.median(rates),
            range_requests_per_s=(min(rates), max(rates)),
            p50_ms=statistics.median(cell.p50_ms for cell in cells),
            p99_ms=statistics.median(cell.p99_ms for cell in cells),
            ratio_to_stock=_median_ratio(rates, [cell.requests_per_s for cell in stock]),
        )

    @property
    def engine_rows(self) -> list[EngineRow]:
        """The table of the engine alone."""
        stock = [cell.requests_per_s for cell in self._series(STOCK, max(CONNECTIONS))]
        found = []
        for batch in in_process.BATCHES:
            rates = [rates[batch] for rates in self.engine_rounds]
            found.append(
                EngineRow(
                    batch=batch,
                    rows_per_s=statistics.median(rates),
                    range_rows_per_s=(min(rates), max(rates)),
                    ratio_to_stock=_median_ratio(rates, stock),
                )
            )
        return found


def _median_ratio(rates: Sequence[float], stock: Sequence[float]) -> float:
    ratios = [rate / base if base else float("nan") for rate, base in zip(rates, stock, strict=True)]
    return statistics.median(ratios)


def targets_of(platform: PlatformUnderTest, stock: StockTorchServe) -> list[Target]:
    """The three servers, all of which hold version 1."""
    node = platform.node()
    headers = {"authorization": f"Bearer {node.inference_key()}", "x-modelway-protocol": "v2-infer"}
    engine_version = platform.loaded()[1]
    node.close()
    return [
        Target(name=GATEWAY, port=platform.settings.gateway_port, path=f"/v2/models/{MODEL}/infer"),
        Target(name=NODE, socket=node.inference_socket, path=f"/predictions/{MODEL}/{engine_version}", headers=headers),
        Target(name=STOCK, port=stock.port, path=stock.path),
    ]


def run(
    platform: PlatformUnderTest, stock: StockTorchServe, model: Path, *, num_rounds: int, duration_s: float, say: Callable[[str], None]
) -> Throughput:
    """Measure everything, once in each round; each round begins with another server."""
    num_workers = stock.wait_ready()
    targets = targets_of(platform, stock)
    rounds, engine_rounds = [], []
    for number in range(num_rounds):
        order = targets[number % 3 :] + targets[: number % 3]
        cells = [Cell(target=target.name, connections=connections) for connections in CONNECTIONS for target in order]
        rounds.append(measure(targets, cells, duration_s=duration_s, warmup_s=duration_s / 4))
        engine_rounds.append(in_process.measure(model, duration_s))
        say(f"round {number + 1} of {num_rounds}:")
        for cell in rounds[-1]:
            say(f"  {cell.connections:>2} connections, {cell.target}: {cell.requests_per_s:,.0f} requests/s, {cell.failed} failed")
    return Throughput(rounds=rounds, engine_rounds=engine_rounds, duration_s=duration_s, num_stock_workers=num_workers)
