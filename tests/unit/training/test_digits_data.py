"""The digits: split, scale, digest."""

from __future__ import annotations

import numpy as np
import pytest

from training.components import build_data
from training.data.batches import data_digest, held_out_rows, prepare, training_rows
from training.data.digits import held_out, load_digits
from training.models.cnn import SmallCNN
from training.recipe import ComponentConfig


@pytest.fixture(scope="module")
def digits():
    return load_digits(0)


def test_every_row_is_in_exactly_one_part(digits):
    rows = np.concatenate([digits.train, digits.val, digits.test])
    assert sorted(rows) == list(range(len(digits.labels)))


def test_parts_have_the_classes_in_the_same_proportions(digits):
    whole = np.bincount(digits.labels) / len(digits.labels)
    for part in (digits.train, digits.val, digits.test):
        share = np.bincount(digits.labels[part], minlength=10) / len(part)
        assert np.abs(share - whole).max() < 0.01


def test_rows_are_shuffled(digits):
    assert not np.array_equal(digits.test, np.sort(digits.test))


def test_pixels_are_raw(digits):
    assert digits.images.dtype == np.float32
    assert digits.images.shape[1:] == (1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 16)


def test_the_seed_decides_the_split_and_the_digest(digits):
    same, other = load_digits(0), load_digits(1)
    assert same.digest() == digits.digest()
    assert other.digest() != digits.digest()
    assert not np.array_equal(other.test, digits.test)


def test_one_changed_pixel_changes_the_digest(digits):
    before = digits.digest()
    digits.images[0, 0, 0, 0] += 1
    try:
        assert digits.digest() != before
    finally:
        digits.images[0, 0, 0, 0] -= 1


def test_held_out_digits_are_those_of_the_data_module():
    images, labels = held_out()
    data = prepare(build_data(ComponentConfig(class_path="training.data.digits_module.DigitsDataModule")))
    rows = held_out_rows(data, SmallCNN())
    np.testing.assert_array_equal(rows.inputs["image"], images)
    np.testing.assert_array_equal(rows.target, labels)
    train = training_rows(data, SmallCNN(), 10_000)
    seen = {row.tobytes() for row in train.inputs["image"]}
    assert len(train) == 1257
    assert not any(row.tobytes() in seen for row in images)
    assert data_digest(data, SmallCNN()) == load_digits(0).digest()
