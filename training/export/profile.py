"""Reference statistics of a version on its held-out rows: what production traffic is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.data.batches import Array, Rows
from training.evaluate import finite_or_none, quality, quality_name
from training.recipe import Task

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_NUM_BINS = 20


def build_profile(task: Task, rows: Rows, outputs: Mapping[str, Array]) -> dict[str, Any]:
    """Statistics as stored in `profile.json`.

    Per tensor: count, number of values that are not finite, mean, standard deviation, quantiles, and a histogram of 20 equal
    bins over the observed range. For classification also how often each class is predicted and true.
    """
    first = next(iter(outputs.values()))
    profile: dict[str, Any] = {
        "num_rows": len(rows),
        "inputs": {name: _statistics(array) for name, array in rows.inputs.items()},
        "outputs": {name: _statistics(array) for name, array in outputs.items()},
        quality_name(task): finite_or_none(quality(task, first, rows.target)),
    }
    if task == "classification":
        num_classes = first.shape[1]
        profile["classes"] = {
            "predicted": np.bincount(first.argmax(-1), minlength=num_classes).tolist(),
            "true": np.bincount(rows.target, minlength=num_classes).tolist(),
        }
    return profile


def _statistics(array: Array) -> dict[str, Any]:
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    statistics: dict[str, Any] = {"count": values.size, "num_not_finite": values.size - finite.size}
    if finite.size == 0:
        return statistics
    counts, edges = np.histogram(finite, bins=_NUM_BINS)
    return statistics | {
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "quantiles": {str(q): float(v) for q, v in zip(_QUANTILES, np.quantile(finite, _QUANTILES), strict=True)},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
