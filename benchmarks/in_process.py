"""The engine alone: ONNX Runtime in process, one thread in each process, no server. The ceiling of everything around it.

python -m benchmarks.in_process MODEL.onnx SAMPLES.npz SECONDS BATCH ...
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.workloads import Floats, Workload, is_close, load_samples

BATCHES = (1, 32)
_WARMUP_CALLS = 20


def measure(workload: Workload, duration_s: float, batches: Sequence[int] = BATCHES, num_processes: int = 1) -> dict[int, float]:
    """Batch size -> rows per second of all processes together."""
    argv = [sys.executable, "-m", "benchmarks.in_process", str(workload.model), str(workload.samples), str(duration_s), *map(str, batches)]
    root = Path(__file__).parent.parent
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=root, text=True) for _ in range(num_processes)]
    told = [process.communicate()[0] for process in running]
    for process in running:
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, argv)
    each = [json.loads(text) for text in told]
    return {batch: sum(float(rates[str(batch)]) for rates in each) for batch in batches}


def _rows_per_s(model: Path, inputs: Floats, expected: Floats, batch: int, duration_s: float) -> float:
    from benchmarks.bundles import open_session  # noqa: PLC0415  only this process runs the model

    session = open_session(model)
    turns = [np.arange(start, start + batch) % len(inputs) for start in range(len(inputs))]
    batches = [np.ascontiguousarray(inputs[turn]) for turn in turns]
    for _ in range(_WARMUP_CALLS):
        (got,) = session.run(None, {"input": batches[0]})
    assert is_close(np.asarray(got), expected[turns[0]])
    started, num_calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < duration_s:
        session.run(None, {"input": batches[num_calls % len(batches)]})
        num_calls += 1
    return num_calls * batch / elapsed


if __name__ == "__main__":
    given, expected_answers = load_samples(Path(sys.argv[2]))
    sizes = [int(size) for size in sys.argv[4:]]
    json.dump({size: _rows_per_s(Path(sys.argv[1]), given, expected_answers, size, float(sys.argv[3])) for size in sizes}, sys.stdout)
