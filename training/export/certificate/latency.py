"""How long a variant takes, alone on this machine, and the goal that the user may have set.

Batch sizes take turns, so that a busy moment of the machine falls on all of them; a turn of the smaller ones is of more calls, for as many
rows. Every percentile is the median of what three blocks of calls say, so that one busy block does not decide.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from registry.certificate import Check
from training.data.batches import Array, Rows
from training.export.certificate.checks import at_most
from training.export.runners import NUM_THREADS, VariantRunner
from training.fit import cpu_threads

LATENCY_BATCH_SIZES = (1, 8, 32)
_WARM_UP_CALLS = 10  # TorchScript optimizes during its first calls
_MIN_WARM_UP_CALLS = 3
_WARM_UP_SECONDS = 0.1  # per batch size
_NUM_BLOCKS = 3
_ROUNDS_PER_BLOCK = 120
_MIN_ROUNDS_PER_BLOCK = 1
_SECONDS_PER_BLOCK = 0.35

Latency = dict[str, dict[str, float]]


def measure_latency(runner: VariantRunner, rows: Rows) -> Latency:
    """`batch_<size>` -> `p50_ms` and `p99_ms` of a call, `rows_per_s` at the median, and the number of `calls` they are of."""
    inputs = {size: rows.take(slice(0, size)) for size in LATENCY_BATCH_SIZES}
    blocks: dict[int, list[list[float]]] = {size: [] for size in inputs}
    with cpu_threads(NUM_THREADS):
        for batch in inputs.values():
            _warm_up(runner, batch)
        for _ in range(_NUM_BLOCKS):
            for size, times_ms in _block(runner, inputs).items():
                blocks[size].append(times_ms)
    return {f"batch_{size}": _summary(size, times_ms) for size, times_ms in blocks.items()}


def latency_check(latency: Latency, goal_p99_ms: float) -> Check:
    """One row within the goal at the 99th percentile."""
    one = latency["batch_1"]
    return at_most("latency/batch_1/p99_ms", one["p99_ms"], goal_p99_ms, f"{one['calls']:.0f} calls, one thread")


def _warm_up(runner: VariantRunner, inputs: Mapping[str, Array]) -> None:
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    for call in range(_WARM_UP_CALLS):
        if call >= _MIN_WARM_UP_CALLS and time.perf_counter() > deadline:
            return
        runner.run(inputs)


def _block(runner: VariantRunner, inputs: Mapping[int, Mapping[str, Array]]) -> dict[int, list[float]]:
    times_ms: dict[int, list[float]] = {size: [] for size in inputs}
    deadline = time.perf_counter() + _SECONDS_PER_BLOCK
    for round_number in range(_ROUNDS_PER_BLOCK):
        if round_number >= _MIN_ROUNDS_PER_BLOCK and time.perf_counter() > deadline:
            break
        for size, batch in inputs.items():
            times_ms[size] += _turn(runner, batch, max(inputs) // size)
    return times_ms


def _turn(runner: VariantRunner, batch: Mapping[str, Array], num_calls: int) -> list[float]:
    """So many calls, or as many as fit into a turn's share of a block; at least one."""
    times_ms: list[float] = []
    deadline = time.perf_counter() + _SECONDS_PER_BLOCK / len(LATENCY_BATCH_SIZES)
    while len(times_ms) < num_calls and not (times_ms and time.perf_counter() > deadline):
        start = time.perf_counter()
        runner.run(batch)
        times_ms.append((time.perf_counter() - start) * 1000)
    return times_ms


def _summary(size: int, blocks: list[list[float]]) -> dict[str, float]:
    p50, p99 = np.median([np.percentile(times_ms, [50, 99]) for times_ms in blocks], axis=0)
    rows_per_s = size * 1000 / p50 if p50 > 0 else 0.0
    return {
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "rows_per_s": round(float(rows_per_s), 1),
        "calls": sum(map(len, blocks)),
    }
