"""How long a variant takes, alone on this machine: facts of a certificate, never a check."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np

from training.data.batches import Array
from training.export.runners import NUM_THREADS, VariantRunner
from training.fit import cpu_threads

_WARM_UP_CALLS = 10  # TorchScript optimizes during its first calls
_MAX_CALLS = 300
_MAX_SECONDS = 1.0
_MIN_CALLS = 5


def measure_latency(runner: VariantRunner, inputs: Mapping[str, Array]) -> dict[str, float]:
    """Milliseconds per call: median, 99th percentile, and the number of calls that they are of."""
    with cpu_threads(NUM_THREADS):
        for _ in range(_WARM_UP_CALLS):
            runner.run(inputs)
        times_ms = list(_times_ms(runner, inputs))
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4), "calls": len(times_ms)}


def _times_ms(runner: VariantRunner, inputs: Mapping[str, Array]) -> Iterator[float]:
    deadline = time.perf_counter() + _MAX_SECONDS
    for call in range(_MAX_CALLS):
        start = time.perf_counter()
        runner.run(inputs)
        end = time.perf_counter()
        yield (end - start) * 1000
        if end > deadline and call + 1 >= _MIN_CALLS:
            return
