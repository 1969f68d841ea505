"""The handwritten digits as a LightningDataModule."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from training.data.digits import Digits, Labels, load_digits


class DigitsDataModule(lightning.LightningDataModule):
    """Batches of `(image float32 [N, 1, 8, 8] with pixels 0..16, digit int64 [N])`.

    Args:
        batch_size: Rows per batch.
        split_seed: Decides which rows are train, val and test. Not the recipe's seed: versions trained with different
            seeds must be comparable on the same held-out rows.
    """

    def __init__(self, batch_size: int = 64, split_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.split_seed = split_seed
        self._digits: Digits | None = None

    @property
    def digits(self) -> Digits:
        """The arrays and the split."""
        if self._digits is None:
            self._digits = load_digits(self.split_seed)
        return self._digits

    def setup(self, stage: str) -> None:
        """Load the arrays; a megabyte, so every stage has all of them."""
        _ = self.digits

    def digest(self) -> str:
        """Hex sha256 over arrays and split."""
        return self.digits.digest()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        return self._loader(self.digits.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches."""
        return self._loader(self.digits.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """Held-out batches, in a fixed order."""
        return self._loader(self.digits.test)

    def _loader(self, rows: Labels, *, shuffle: bool = False) -> DataLoader[Any]:
        images, labels = self.digits.images[rows], self.digits.labels[rows]
        dataset = TensorDataset(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=shuffle)
