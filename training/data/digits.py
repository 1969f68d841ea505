"""scikit-learn's copy of the UCI handwritten digits as numpy arrays: 1,797 images of 8x8 pixels, 0..16.

Kept apart from the DataModule so that a load generator can have held-out digits without importing torch.
Source: https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]  # [n, 1, 8, 8], raw pixels 0..16
Labels = npt.NDArray[np.int64]  # [n], 0..9

TEST_FRACTION = 0.2
VAL_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Digits:
    """All digits and the indices of a split.

    Attributes:
        images: float32 [1797, 1, 8, 8], raw pixels 0..16.
        labels: int64 [1797].
        train, val, test: Indices, shuffled, each with the classes in the same proportions.
    """

    images: Images
    labels: Labels
    train: Labels
    val: Labels
    test: Labels

    def digest(self) -> str:
        """Hex sha256 of the images, the labels and the indices of the split."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.train, self.val, self.test):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_digits(split_seed: int = 0) -> Digits:
    """The digits, split 70/10/20 into train, val and test; the same seed gives the same split."""
    from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]  # noqa: PLC0415  # a second to import
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]  # noqa: PLC0415

    source = load()
    images = np.ascontiguousarray(source.images[:, None], dtype=np.float32)
    labels = np.ascontiguousarray(source.target, dtype=np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=split_seed)
    train, val = train_test_split(rest, test_size=VAL_FRACTION / (1 - TEST_FRACTION), stratify=labels[rest], random_state=split_seed)
    return Digits(images=images, labels=labels, train=train, val=val, test=test)


def held_out(split_seed: int = 0) -> tuple[Images, Labels]:
    """Images float32 [360, 1, 8, 8] and labels int64 [360] that no model of this split was trained on."""
    digits = load_digits(split_seed)
    return digits.images[digits.test], digits.labels[digits.test]
