"""Answers of an ONNX graph while it is being worked on. Certificates measure with `runners`, never with this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]

from training.data.batches import Array

_BATCH_ROWS = 32


def answers(model: Path | onnx.ModelProto, inputs: Mapping[str, Array]) -> Sequence[Array]:
    """The outputs of a graph, in order, for all rows."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    num_rows = len(next(iter(inputs.values())))
    parts = [
        session.run(None, {name: array[start : start + _BATCH_ROWS] for name, array in inputs.items()})
        for start in range(0, num_rows, _BATCH_ROWS)
    ]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]
