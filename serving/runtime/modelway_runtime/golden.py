"""The golden set: inputs with the outputs that the trained model gave, and how far an exported form may be off."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import Array

Tolerance = Mapping[str, Mapping[str, float]]  # output -> {"rtol", "atol"}


@dataclass(frozen=True)
class GoldenSet:
    """Inputs and expected outputs by tensor name, all with the same number of rows."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @property
    def num_rows(self) -> int:
        """Rows of every tensor."""
        return int(next(iter(self.inputs.values())).shape[0])

    @classmethod
    def load(cls, source: Path | bytes) -> GoldenSet:
        """Read `golden.npz` (arrays `in/<name>` and `out/<name>`).

        Raises:
            ValueError: If it is not one, is empty, or its tensors differ in their number of rows. Pickles are refused.
        """
        tensors: dict[str, dict[str, Array]] = {"in": {}, "out": {}}
        with np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False) as arrays:
            for key in arrays.files:
                side, _, name = key.partition("/")
                if side not in tensors or not name:
                    raise ValueError(f"unexpected array in the golden set ({key})")
                tensors[side][name] = arrays[key]
        every: list[Array] = [array for side in tensors.values() for array in side.values()]
        rows = {array.shape[0] if array.ndim else 0 for array in every}
        if not tensors["in"] or not tensors["out"] or len(rows) != 1 or 0 in rows:
            raise ValueError(f"the golden set needs inputs and outputs with equally many rows (has {sorted(rows)})")
        return cls(tensors["in"], tensors["out"])


@dataclass(frozen=True)
class Comparison:
    """How far outputs are off.

    Attributes:
        max_abs_error: Largest absolute difference over all outputs; infinite if shapes differ or values are not finite.
        problems: One line for each output that is outside its tolerance, with numbers.
    """

    max_abs_error: float
    problems: tuple[str, ...]


def _held_against(want: Array, got: Array, rtol: float, atol: float) -> tuple[Array, Array]:
    """Absolute error and whether it is within tolerance, element by element. Texts are equal or infinitely far off."""
    if want.dtype.kind in "OU" or got.dtype.kind in "OU":
        equal = np.asarray(got.astype(object) == want.astype(object), dtype=bool)
        return np.where(equal, 0.0, np.inf), equal
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        return error, error <= atol + rtol * np.abs(want.astype(np.float64))


def compare(expected: Mapping[str, Array], got: Mapping[str, Any], tolerance: Tolerance) -> Comparison:
    """Hold outputs against the golden ones: |got - expected| <= atol + rtol * |expected|, element by element.

    An output without a tolerance must be equal. NaN is never within tolerance.
    """
    problems, worst = [], 0.0
    for name, want in expected.items():
        limit = tolerance.get(name, {})
        rtol, atol = float(limit.get("rtol", 0.0)), float(limit.get("atol", 0.0))
        if name not in got:
            problems.append(f"output {name} is missing")
            worst = float("inf")
            continue
        array = np.asarray(got[name])
        if array.shape != want.shape:
            problems.append(f"output {name} has shape {list(array.shape)}, expected {list(want.shape)}")
            worst = float("inf")
            continue
        error, within = _held_against(want, array, rtol, atol)
        largest = float(error.max()) if np.isfinite(error).all() else float("inf")
        worst = max(worst, largest)
        if not within.all():
            row = int(np.argwhere(~within)[0][0])
            problems.append(
                f"output {name} is off by {largest:.6g} (allowed {atol:g} + {rtol:g} * |expected|; "
                f"{int((~within).sum())} of {within.size} values, first in row {row})"
            )
    return Comparison(worst, tuple(problems))
