"""The sample of inputs that comes with a model that was trained elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import UsageError
from training.data.batches import Array
from training.recipe import Task

_FORM = "Write it with numpy.savez(FILE, NAME=array, ...): one array per input, the first dimension the rows."


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Rows of a model's inputs.

    Attributes:
        inputs: Input name -> array [n, ...].
        labels: Array [n, ...]; None if there are none.
        positional: Whether the names say nothing: the inputs are the model's first ones, in order.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    positional: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def named(self, names: Sequence[str]) -> Sample:
        """The sample with the model's names, if its own say nothing. Raises UsageError if it has more inputs than the model."""
        if not self.positional:
            return self
        if len(names) < len(self.inputs):
            raise UsageError(f"the sample has {len(self.inputs)} inputs, the model {len(names)} ({', '.join(names)})", _FORM)
        return dataclasses.replace(self, inputs=dict(zip(names, self.inputs.values(), strict=False)), positional=False)

    def digest(self) -> str:
        """Hex sha256 of names, types, shapes and values."""
        digest = hashlib.sha256()
        for name, array in (*self.inputs.items(), *([("", self.labels)] if self.labels is not None else [])):
            digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_sample(path: Path, *, labels_from: str = "target") -> Sample:
    """Read a `.npz` file; nothing in it is unpickled.

    Raises:
        UsageError: Not such a file, no rows, different numbers of rows, or types that no tensor has.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UsageError(f"the sample is one array without a name ({path})", _FORM)
        with loaded:
            arrays = {name: np.asarray(loaded[name]) for name in loaded.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"cannot read the sample ({path}: {' '.join(str(error).split())})", _FORM) from error
    labels = arrays.pop(labels_from, None)
    if not arrays:
        raise UsageError(f"the sample has no inputs ({path})", _FORM)
    counts = {
        name: len(array) if array.ndim else 0 for name, array in {**arrays, **({} if labels is None else {labels_from: labels})}.items()
    }
    if len(set(counts.values())) != 1 or 0 in counts.values():
        rows = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(f"the sample's arrays have no rows, or not the same number of them ({rows})", _FORM)
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UsageError(f"an input of the sample is neither numbers nor booleans ({name}: {array.dtype})", _FORM)
    return Sample(inputs=arrays, labels=labels)


def infer_task(labels: Array | None) -> Task:
    """Classification where labels are class numbers, else regression."""
    return "classification" if labels is not None and labels.dtype.kind in "iu" and labels.ndim == 1 else "regression"


def in_order(sample: Sample, names: tuple[str, ...], *, what: str) -> dict[str, Array]:
    """The sample's inputs in the order in which the model takes them. Raises UsageError unless it has exactly these."""
    missing, unknown = [name for name in names if name not in sample.inputs], [name for name in sample.inputs if name not in names]
    if missing or unknown:
        raise UsageError(
            f"the sample does not have the inputs of {what} (missing: {_list(missing)}; unknown: {_list(unknown)})",
            f"It takes {', '.join(names)}. Name the sample's arrays so, or bind an input to a constant with --fix.",
        )
    return {name: sample.inputs[name] for name in names}


def renamed(by_input: Mapping[str, Any], sample: Sample, names: Sequence[str]) -> dict[str, Any]:
    """What is kept by input, under the model's names, if the sample's own say nothing."""
    return {names[list(sample.inputs).index(name)]: value for name, value in by_input.items()} if sample.positional else dict(by_input)


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
