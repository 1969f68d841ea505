"""What every DataModule of a recipe is asked for: rows as arrays, and a digest of the data.

Batches are `(inputs, target)`; see `training.interface` for the forms of inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from registry.errors import UsageError
from training.interface import named_inputs

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of a data set as arrays.

    Attributes:
        inputs: Input name -> array [n, ...], in the order of the model's `forward`.
        target: Array [n, ...].
    """

    inputs: Mapping[str, Array]
    target: Array

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: slice | npt.NDArray[np.int64]) -> dict[str, Array]:
        """The inputs of some of the rows."""
        return {name: array[rows] for name, array in self.inputs.items()}


def prepare(data: lightning.LightningDataModule) -> lightning.LightningDataModule:
    """Call the DataModule's hooks as Lightning would, for all stages; returns it."""
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def training_rows(data: lightning.LightningDataModule, model: nn.Module, num_rows: int) -> Rows:
    """The first rows of the training batches. Raises UsageError."""
    return _collect(_batches(data, "train_dataloader"), model, num_rows)


def held_out_rows(data: lightning.LightningDataModule, model: nn.Module, num_rows: int | None = None) -> Rows:
    """Rows of the test batches; of the validation batches for a DataModule that has no test data. Raises UsageError."""
    name = "test_dataloader" if _has(data, "test_dataloader") else "val_dataloader"
    return _collect(_batches(data, name), model, num_rows)


def data_digest(data: lightning.LightningDataModule, model: nn.Module) -> str:
    """Hex sha256 of the data: the DataModule's own `digest()`, or over the held-out batches for one that has none."""
    own = getattr(data, "digest", None)
    if callable(own):
        return str(own())
    rows = held_out_rows(data, model)
    digest = hashlib.sha256()
    for name, array in [*rows.inputs.items(), ("target", rows.target)]:
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _has(data: lightning.LightningDataModule, name: str) -> bool:
    return getattr(type(data), name, None) is not getattr(lightning.LightningDataModule, name)


def _batches(data: lightning.LightningDataModule, name: str) -> Iterable[Any]:
    if not _has(data, name):
        raise UsageError(f"the DataModule has no {name} ({type(data).__name__})", "Implement train_dataloader and test_dataloader.")
    batches: Iterable[Any] = getattr(data, name)()
    return batches


def _collect(batches: Iterable[Any], model: nn.Module, num_rows: int | None) -> Rows:
    inputs: dict[str, list[torch.Tensor]] = {}
    targets: list[torch.Tensor] = []
    count = 0
    for batch in batches:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor)):
            raise UsageError(f"a batch of the data is not (inputs, target) ({type(batch).__name__})", "See docs/training.md.")
        for name, tensor in named_inputs(model, batch[0]).items():
            inputs.setdefault(name, []).append(tensor)
        targets.append(batch[1])
        count += len(batch[1])
        if num_rows is not None and count >= num_rows:
            break
    if not targets:
        raise UsageError("the DataModule gives no batches", "Check its split.")
    return Rows(
        inputs={name: torch.cat(tensors)[:num_rows].numpy() for name, tensors in inputs.items()},
        target=torch.cat(targets)[:num_rows].numpy(),
    )
