"""How far one array is from another, in the numbers that a certificate shows. Functions of arrays only.

A NaN in an array makes its errors NaN, and NaN is within no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from training.data.batches import Array
from training.evaluate import finite_or_none
from training.export.certificate.reference import peak

# An element below this fraction of the output's peak counts as that much: relative errors of values near zero say nothing.
RELATIVE_FLOOR = 1e-3
_CHUNK_VALUES = 1_000_000
_TEXT = "OU"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputErrors:
    """Errors of one output.

    Attributes:
        max_abs: Largest absolute error.
        mean_abs: Mean absolute error.
        max_rel: Largest error as a fraction of the element, elements below a thousandth of the peak counted as that much.
        mean_rel: Mean of the same.
        min_cosine: Smallest cosine of a row with its reference; None for texts.
        mean_cosine: Mean of the same.
        argmax_agreement: Share of positions with the same largest element in the last dimension; None where it has one element.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    min_cosine: float | None
    mean_cosine: float | None
    argmax_agreement: float | None

    def to_json(self) -> dict[str, float | None]:
        """Six digits each; None for what JSON cannot hold."""
        return {name: None if value is None else significant(value) for name, value in asdict(self).items()}


def compare(found: Array, expected: Array) -> OutputErrors:
    """All errors of an output [n, ...] against what was expected. Shapes that differ make them infinite.

    Rows are looked at a few at a time: the output of a sequence model on all held-out rows is large, and its errors in float64 larger.
    """
    if found.shape != expected.shape or _has_text(found, expected):
        errors = absolute_errors(found, expected)
        worst, mean = float(errors.max(initial=0.0)), float(errors.mean()) if errors.size else 0.0
        return OutputErrors(
            max_abs=worst, mean_abs=mean, max_rel=worst, mean_rel=mean, min_cosine=None, mean_cosine=None, argmax_agreement=None
        )
    floor = RELATIVE_FLOOR * peak(expected)
    parts = [_part(found[rows], expected[rows], floor) for rows in row_chunks(expected)]
    size = max(expected.size, 1)
    cosines = np.concatenate([part.cosines for part in parts])
    return OutputErrors(
        max_abs=float(np.max([part.max_abs for part in parts])),
        mean_abs=sum(part.sum_abs for part in parts) / size,
        max_rel=float(np.max([part.max_rel for part in parts])),
        mean_rel=sum(part.sum_rel for part in parts) / size,
        min_cosine=float(cosines.min(initial=1.0)),
        mean_cosine=float(cosines.mean()) if cosines.size else 1.0,
        argmax_agreement=argmax_agreement(found, expected),
    )


def row_chunks(array: Array) -> Iterator[slice]:
    """Slices of rows that hold a million values each at most, or one row; one slice at least."""
    num_rows = len(array)
    size = max(1, _CHUNK_VALUES * max(num_rows, 1) // max(array.size, 1))
    for start in range(0, max(num_rows, 1), size):
        yield slice(start, min(start + size, num_rows))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    max_abs: float
    sum_abs: float
    max_rel: float
    sum_rel: float
    cosines: Array


def _part(found: Array, expected: Array, floor: float) -> _Part:
    errors = absolute_errors(found, expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(errors == 0, 0.0, errors / np.maximum(np.abs(expected.astype(np.float64)), floor))
    return _Part(
        max_abs=float(errors.max(initial=0.0)),
        sum_abs=float(errors.sum()),
        max_rel=float(relative.max(initial=0.0)),
        sum_rel=float(relative.sum()),
        cosines=row_cosines(found, expected),
    )


def absolute_errors(found: Array, expected: Array) -> Array:
    """Absolute differences in float64; infinite where the shapes do not even fit, or a text differs."""
    if found.shape != expected.shape:
        return np.full(1, np.inf)
    if _has_text(found, expected):
        return np.where(found.astype(object) == expected.astype(object), 0.0, np.inf)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which fails its check
        return np.abs(found.astype(np.float64) - expected.astype(np.float64))


def max_error(found: Array, expected: Array) -> float:
    """Largest absolute error."""
    return float(absolute_errors(found, expected).max(initial=0.0))


def mean_error(found: Array, expected: Array) -> float:
    """Mean absolute error."""
    errors = absolute_errors(found, expected)
    return float(errors.mean()) if errors.size else 0.0


def row_cosines(found: Array, expected: Array) -> Array:
    """Cosine of each row with its reference, [n]; 1 where both are zero, 0 where one is."""
    num_rows = len(expected)
    if num_rows == 0:
        return np.ones(0)
    left, right = found.astype(np.float64).reshape(num_rows, -1), expected.astype(np.float64).reshape(num_rows, -1)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
        product = np.einsum("ij,ij->i", left, right)
        length = norms[0] * norms[1]
        both_zero = (norms[0] == 0) & (norms[1] == 0)
        return np.where(both_zero, 1.0, np.divide(product, length, out=np.zeros_like(product), where=length != 0))


def argmax_agreement(found: Array, expected: Array) -> float | None:
    """Share of positions with the same largest element in the last dimension; None for arrays that have no such choice."""
    if expected.ndim < 2 or expected.shape[-1] < 2 or expected.dtype.kind != "f" or expected.size == 0:
        return None
    return float(np.mean(found.argmax(-1) == expected.argmax(-1)))


def num_not_finite(array: Array) -> int:
    """How many values are NaN or infinite."""
    return int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind == "f" else 0


def significant(value: float) -> float | None:
    """Six significant digits; None for what JSON cannot hold."""
    return finite_or_none(float(f"{value:.6g}"))


def _has_text(found: Array, expected: Array) -> bool:
    return found.dtype.kind in _TEXT or expected.dtype.kind in _TEXT
