"""`make bench-gpu`: rows per second of the MLP by what it runs on, in process, without any server. Needs an NVIDIA GPU.

Never run so far for want of a machine. It goes through the same code as a worker: `serving.runtime.modelway_runtime.backends`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.bundles import write_onnx
from benchmarks.mlp import INPUT, LAYERS, OUTPUT
from serving.archive import RuntimeOptions
from serving.runtime.modelway_runtime import backends
from serving.runtime.modelway_runtime.gpu import CUDA, TENSORRT
from serving.runtime.modelway_runtime.tensors import Spec

DRIVER = Path("/proc/driver/nvidia/version")
BATCHES = (1, 8, 32, 128, 512)
SECONDS = 2.0
WAYS: Mapping[str, RuntimeOptions] = {
    "CPU, 1 thread": RuntimeOptions(),
    "CUDA": RuntimeOptions(provider=CUDA),
    "CUDA, recorded": RuntimeOptions(provider=CUDA, cuda_graph=True),
    "TensorRT": RuntimeOptions(provider=TENSORRT),
    "TensorRT, half": RuntimeOptions(provider=TENSORRT, tensorrt_fp16=True),
}


def missing(driver: Path = DRIVER, available: list[str] | None = None) -> str:
    """Why this machine cannot run it; empty if it can."""
    available = onnxruntime.get_available_providers() if available is None else available
    if not driver.exists():
        return f"no NVIDIA GPU here (there is no {driver}). Run it on a machine with one."
    if CUDA not in available:
        return f"this ONNX Runtime is built for the CPU (it has {', '.join(available)}). Run: make setup-dev VARIANT=gpu"
    return ""


def rows_per_s(root: Path, options: RuntimeOptions, num_rows: int) -> float:
    """Rows per second in batches of that many, after a warm-up."""
    specs = ([Spec(INPUT, "FP32", (-1, LAYERS[0]))], [Spec(OUTPUT, "FP32", (-1, LAYERS[-1]))])
    backend = backends.load(root, "onnxruntime", *specs, asdict(options), gpu_id=0)
    rows = np.random.default_rng(1).normal(size=(num_rows, LAYERS[0])).astype(np.float32)
    for _ in range(20):
        backend.run([rows])
    began, num_runs = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        backend.run([rows])
        num_runs += 1
    return num_runs * num_rows / (time.perf_counter() - began)


def main() -> int:
    """Measure every way that is installed and print a table."""
    reason = missing()
    if reason:
        print(f"Error: {reason}", file=sys.stderr)
        return 1
    available = onnxruntime.get_available_providers()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / backends.ONNX_FILE).parent.mkdir(parents=True)
        write_onnx(root / backends.ONNX_FILE, version=1)
        print(DRIVER.read_text().splitlines()[0])
        print(f"| rows/s | {' | '.join(f'batch {size}' for size in BATCHES)} |")
        print(f"| --- |{' --- |' * len(BATCHES)}")
        for name, options in WAYS.items():
            if options.provider in available:
                print(f"| {name} | {' | '.join(f'{rows_per_s(root, options, size):,.0f}' for size in BATCHES)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
