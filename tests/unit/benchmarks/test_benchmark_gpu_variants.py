"""What `make bench-gpu` measures and writes, as far as a CPU can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import gpu
from benchmarks.gpu_variants import SHAPE, context_of, convnet, pytorch, rows_per_s, table, variants


def test_ways_answer_alike_and_are_measured_at_each_batch(tmp_path: Path) -> None:
    model = convnet()
    ways = variants(model, context_of(model, tmp_path, "cpu"), ("onnx-fp32", "torchscript-fp32"))
    ways["PyTorch, eager"] = pytorch(model, "cpu", compiled=False)
    assert set(ways) == {"onnx-fp32", "torchscript-fp32", "PyTorch, eager"}
    rows = np.random.default_rng(3).normal(size=(3, *SHAPE)).astype(np.float32)
    answers = [run(rows) for run in ways.values()]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-5)
    rates = rows_per_s(ways, (1, 2), seconds=0.01)
    assert all(set(by_size) == {1, 2} and min(by_size.values()) > 0 for by_size in rates.values())


def test_the_document_holds_both_tables() -> None:
    first, second = table({"onnx-fp16": {1: 1234.4, 8: 9.6}}), table({"CUDA": {1: 2.0}})
    assert first.splitlines() == ["| rows/s | batch 1 | batch 8 |", "| --- | --- | --- |", "| onnx-fp16 | 1,234 | 10 |"]
    written = gpu.document("driver 1", second, first)
    assert first in written
    assert second in written
    assert "driver 1" in written
