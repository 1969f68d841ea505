"""What a model answers on rows, and how good that is. Numbers only; torch only to run the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from registry.errors import UsageError
from training.data.batches import Array, Rows
from training.interface import evaluating, named_outputs
from training.recipe import Task

_BATCH_ROWS = 256


def predict(model: nn.Module, inputs: Mapping[str, Array], *, outputs: Sequence[str] | None, task: Task) -> dict[str, Array]:
    """The eager model's outputs for all rows, by name, in evaluation mode.

    Args:
        inputs: Input name -> array [n, ...], in the order of `forward`.
        outputs: Names for the outputs; None for the usual ones.
    """
    num_rows = len(next(iter(inputs.values())))
    parts: dict[str, list[Array]] = {}
    with evaluating(model), torch.inference_mode():
        for start in range(0, num_rows, _BATCH_ROWS):
            batch = [torch.from_numpy(np.ascontiguousarray(array[start : start + _BATCH_ROWS])) for array in inputs.values()]
            for name, tensor in named_outputs(model(*batch), outputs, task).items():
                parts.setdefault(name, []).append(tensor.numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def check_task(task: Task, rows: Rows, output: Array) -> None:
    """Raise UsageError if targets and first output are not what the task means."""
    if task == "classification":
        if rows.target.dtype.kind not in "iu" or rows.target.ndim != 1:
            raise UsageError(
                f"task is classification, but targets are {rows.target.dtype} {list(rows.target.shape)}",
                "Give class numbers as integers [N], or set task: regression.",
            )
        lowest, highest = int(rows.target.min()), int(rows.target.max())
        if output.ndim != 2 or highest >= output.shape[1] or lowest < 0:
            raise UsageError(
                f"the model's first output does not have a column per class ({list(output.shape)}, classes {lowest}..{highest})",
                "Answer logits [N, classes]; count classes from 0.",
            )
    elif output.size != rows.target.size:
        raise UsageError(f"output and target differ in shape ({list(output.shape)}, {list(rows.target.shape)})")


def quality(task: Task, output: Array, target: Array) -> float:
    """The one number that export budgets are about: accuracy, or R2 for regression. NaN anywhere makes it NaN for regression."""
    if task == "classification":
        return float(np.mean(output.argmax(-1) == target))
    residual = np.square(output.reshape(target.shape).astype(np.float64) - target).sum()
    spread = np.square(target - target.mean(axis=0, dtype=np.float64)).sum()
    return float(1 - residual / spread) if spread > 0 else float("nan")


def finite_or_none(value: float) -> float | None:
    """The number, or None for one that JSON cannot hold."""
    return value if math.isfinite(value) else None


def quality_name(task: Task) -> str:
    """What `quality` measures, as metrics call it."""
    return "accuracy" if task == "classification" else "r2"


def evaluate(task: Task, output: Array, target: Array) -> dict[str, float]:
    """Metrics of the first output on held-out rows: accuracy and log loss, or R2, RMSE and MAE."""
    metrics = {quality_name(task): quality(task, output, target)}
    if task == "classification":
        logits = output.astype(np.float64)
        with np.errstate(invalid="ignore"):  # a model may answer infinities; the loss is then NaN
            shifted = logits - logits.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return metrics | {"log_loss": float(-log_probability[np.arange(len(target)), target].mean())}
    error = output.reshape(target.shape).astype(np.float64) - target
    return metrics | {"rmse": float(np.sqrt(np.square(error).mean())), "mae": float(np.abs(error).mean())}


def confusion_matrix(output: Array, target: Array) -> npt.NDArray[np.int64]:
    """Counts [classes, classes]: row is the true class, column the predicted one."""
    num_classes = output.shape[1]
    flat = target.astype(np.int64) * num_classes + output.argmax(-1)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
