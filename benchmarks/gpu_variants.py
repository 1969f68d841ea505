"""The variants that fit a GPU beside plain PyTorch, eager and compiled: rows per second in process, float32 rows in and out.

Each way gets its rows in the machine's memory and leaves its answers there, as a worker does. Ways take turns within a batch size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from registry.signature import Signature, TensorSpec
from training.data.batches import Array, Rows
from training.export.catalog import EXPORTERS
from training.export.exporter import ExportContext
from training.export.runners import open_variant
from training.recipe import Target

BATCHES = (1, 8, 32, 128)
SHAPE = (3, 64, 64)
NUM_CLASSES = 100
_ROUNDS = 5

Run = Callable[[Array], Array]


def convnet() -> nn.Module:
    """Four convolutions of 64 to 256 channels on 64 x 64 pixels and a classifier; 1 million parameters."""
    torch.manual_seed(0)
    sizes = (SHAPE[0], 64, 128, 256, 256)
    blocks = [
        layer
        for before, after in pairwise(sizes)
        for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], NUM_CLASSES)).eval()


def context_of(model: nn.Module, scratch: Path, target: Target) -> ExportContext:
    """What exporters need of the model; random rows."""
    rows = np.random.default_rng(0).normal(size=(32, *SHAPE)).astype(np.float32)
    inputs, outputs = TensorSpec("image", "FP32", (-1, *SHAPE)), TensorSpec("logits", "FP32", (-1, NUM_CLASSES))
    return ExportContext(
        signature=Signature(inputs=(inputs,), outputs=(outputs,)),
        example={"image": torch.from_numpy(rows[:4])},
        calibration=Rows(inputs={"image": rows}, target=np.zeros(len(rows), np.int64)),
        task="classification",
        scratch=scratch,
        target=target,
    )


def variants(model: nn.Module, context: ExportContext, names: Sequence[str] | None = None) -> dict[str, Run]:
    """Every variant that fits the context's target, exported and loaded for it; only those of `names`, if given."""
    ways: dict[str, Run] = {}
    for exporter in EXPORTERS:
        if exporter.unfit(model, context) is not None or (names is not None and exporter.name not in names):
            continue
        directory = context.scratch / f"variant-{exporter.name}"
        directory.mkdir()
        exporter.export(model, context, directory)
        runner = open_variant(directory, context.signature, target=context.target)
        ways[exporter.name] = lambda rows, runner=runner: runner.run({"image": rows})["logits"]  # type: ignore[misc]
    return ways


def pytorch(model: nn.Module, device: Target, *, compiled: bool) -> Run:
    """The module itself on the device."""
    module = model.to(device)
    call = torch.compile(module, dynamic=False) if compiled else module

    def run(rows: Array) -> Array:
        with torch.inference_mode():
            answer: Array = call(torch.from_numpy(rows).to(device)).cpu().numpy()
        return answer

    return run


def rows_per_s(ways: Mapping[str, Run], batches: Sequence[int] = BATCHES, seconds: float = 1.0) -> dict[str, dict[int, float]]:
    """Way -> batch size -> rows per second, the median of five turns of that many seconds together."""
    rates: dict[str, dict[int, float]] = {name: {} for name in ways}
    for size in batches:
        rows = np.random.default_rng(size).normal(size=(size, *SHAPE)).astype(np.float32)
        for run in ways.values():
            for _ in range(3):  # compiles, where there is something to compile
                run(rows)
        turns: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(_ROUNDS):
            for name, run in ways.items():
                turns[name].append(_rate(run, rows, seconds / _ROUNDS))
        for name, measured in turns.items():
            rates[name][size] = float(np.median(measured))
    return rates


def table(rates: Mapping[str, Mapping[int, float]]) -> str:
    """Markdown: a line per way, a column per batch size."""
    sizes = sorted({size for by_size in rates.values() for size in by_size})
    lines = [f"| rows/s | {' | '.join(f'batch {size}' for size in sizes)} |", f"| --- |{' --- |' * len(sizes)}"]
    lines += [f"| {name} | {' | '.join(f'{by_size[size]:,.0f}' for size in sizes)} |" for name, by_size in rates.items()]
    return "\n".join(lines)


def _rate(run: Run, rows: Array, seconds: float) -> float:
    began, num_runs = time.perf_counter(), 0
    while num_runs == 0 or time.perf_counter() - began < seconds:
        run(rows)
        num_runs += 1
    return num_runs * len(rows) / (time.perf_counter() - began)
