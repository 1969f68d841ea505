"""`make bench-gpu`: rows per second by what a model runs on, in process, without any server; writes docs/gpu.md. Needs an NVIDIA GPU.

Never run so far for want of a machine. Providers are measured through a worker's own code, `serving.runtime.modelway_runtime.backends`;
variants beside plain PyTorch through the certificates' code, `benchmarks.gpu_variants`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks import gpu_variants
from benchmarks.bundles import write_onnx
from benchmarks.mlp import INPUT, LAYERS, OUTPUT
from serving.archive import RuntimeOptions
from serving.runtime.modelway_runtime import backends
from serving.runtime.modelway_runtime.gpu import CUDA, TENSORRT
from serving.runtime.modelway_runtime.tensors import Spec

DOCUMENT = Path(__file__).parents[1] / "docs" / "gpu.md"
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


def providers_table(available: Sequence[str]) -> str:
    """The MLP by provider."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / backends.ONNX_FILE).parent.mkdir(parents=True)
        write_onnx(root / backends.ONNX_FILE, version=1)
        return gpu_variants.table(
            {
                name: {size: rows_per_s(root, options, size) for size in BATCHES}
                for name, options in WAYS.items()
                if options.provider in available
            }
        )


def variants_table() -> str:
    """The variants for CUDA, with bound tensors, beside PyTorch eager and compiled."""
    with tempfile.TemporaryDirectory() as scratch:
        model = gpu_variants.convnet()
        ways = gpu_variants.variants(model, gpu_variants.context_of(model, Path(scratch), "cuda"))
        ways |= {
            "PyTorch, eager": gpu_variants.pytorch(model, "cuda", compiled=False),
            "PyTorch, compiled": gpu_variants.pytorch(model, "cuda", compiled=True),
        }
        return gpu_variants.table(gpu_variants.rows_per_s(ways))


def document(driver: str, providers: str, variants: str) -> str:
    """The text of docs/gpu.md."""
    return f"""# On a GPU

Measured by `make bench-gpu` on: {driver}

In process, one thread that asks, rows from the machine's memory and answers back into it.

## Variants beside PyTorch

A network of four convolutions on 3 x 64 x 64 pixels.

{variants}

## Providers

An MLP of {" x ".join(map(str, LAYERS))}, through a worker's backend.

{providers}
"""


def main() -> int:
    """Measure everything that is installed and write the document."""
    reason = missing()
    if reason:
        print(f"Error: {reason}", file=sys.stderr)
        return 1
    driver = DRIVER.read_text().splitlines()[0]
    DOCUMENT.write_text(document(driver, providers_table(onnxruntime.get_available_providers()), variants_table()), encoding="utf-8")
    print(f"wrote {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
