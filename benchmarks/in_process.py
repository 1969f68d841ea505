"""The engine alone: ONNX Runtime in process, one thread, no server. The ceiling of everything around it.

python -m benchmarks.in_process MODEL.onnx SECONDS
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.mlp import ATOL, INPUT, expected_logits, rows

BATCHES = (1, 32)
_WARMUP_CALLS = 20


def measure(model: Path, duration_s: float) -> dict[int, float]:
    """Batch size -> rows per second, measured in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.in_process", str(model), str(duration_s)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent, text=True, check=True)
    return {int(batch): float(rate) for batch, rate in json.loads(done.stdout).items()}


def _rows_per_s(model: Path, batch: int, duration_s: float) -> float:
    from benchmarks.bundles import open_session  # noqa: PLC0415  only this process runs the model

    session, inputs = open_session(model), rows(batch)
    for _ in range(_WARMUP_CALLS):
        (got,) = session.run(None, {INPUT: inputs})
    assert np.allclose(np.asarray(got), expected_logits(inputs, 1), atol=ATOL)
    started, num_calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < duration_s:
        session.run(None, {INPUT: inputs})
        num_calls += 1
    return num_calls * batch / elapsed


if __name__ == "__main__":
    json.dump({batch: _rows_per_s(Path(sys.argv[1]), batch, float(sys.argv[2])) for batch in BATCHES}, sys.stdout)
