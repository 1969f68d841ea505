"""Whether a classifier's confidence is what it says: reliability and expected calibration error. Functions of arrays only.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.batches import Array

NUM_BINS = 10
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Rows by the confidence of their predicted class, in ten equal bins.

    Attributes:
        confidence: Mean confidence of each bin that has rows.
        accuracy: Share of right rows of the same bins.
        num_rows: Number of rows of the same bins.
        error: Expected calibration error: mean distance of the two, by rows.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    num_rows: tuple[int, ...]
    error: float


def reliability(output: Array, target: Array) -> Reliability | None:
    """Reliability of logits or probabilities [n, classes] against class numbers [n]; None if a value is not finite."""
    if not np.isfinite(output).all():
        return None
    probabilities = as_probabilities(output)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == target
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    filled = counts > 0
    mean_confidence = np.bincount(bins, weights=confidence, minlength=NUM_BINS)[filled] / counts[filled]
    accuracy = np.bincount(bins, weights=right, minlength=NUM_BINS)[filled] / counts[filled]
    error = float(np.sum(counts[filled] * np.abs(accuracy - mean_confidence)) / len(target))
    return Reliability(
        confidence=tuple(mean_confidence.tolist()),
        accuracy=tuple(accuracy.tolist()),
        num_rows=tuple(int(count) for count in counts[filled]),
        error=error,
    )


def as_probabilities(output: Array) -> Array:
    """Rows that are probabilities already as they are; the softmax of others."""
    values = output.astype(np.float64)
    if values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < _SUM_TOLERANCE:
        return values
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
