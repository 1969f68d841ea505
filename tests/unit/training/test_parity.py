"""Errors of arrays, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.export.certificate import parity
from training.export.certificate.parity import compare, max_error, mean_error, num_not_finite, row_cosines


def test_errors_by_hand():
    expected = np.array([[1.0, -10.0], [0.001, 4.0]], np.float32)
    found = np.array([[1.5, -10.0], [0.011, 3.0]], np.float32)
    errors = compare(found, expected)
    assert errors.max_abs == pytest.approx(1.0)
    assert errors.mean_abs == pytest.approx((0.5 + 0 + 0.01 + 1) / 4)
    # The peak is 10, so that the small element counts as 0.01: an error of 0.01 is one of 100%, not of 1000%.
    assert errors.max_rel == pytest.approx(1.0, rel=1e-5)
    assert errors.mean_rel == pytest.approx((0.5 + 0 + 1.0 + 0.25) / 4, rel=1e-5)
    assert errors.argmax_agreement == 1.0


def test_cosines_by_hand():
    expected = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    found = np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(row_cosines(found, expected), [0, 1, 1, 0])


def test_a_row_of_a_tensor_is_all_of_it():
    rows = np.random.default_rng(0).normal(size=(3, 4, 5))
    assert row_cosines(rows, rows * 2).shape == (3,)
    assert compare(rows * 2, rows).min_cosine == pytest.approx(1.0)


def test_argmax_agreement_is_a_share_of_positions():
    expected = np.zeros((2, 2, 3), np.float32)
    expected[..., 0] = 1
    found = expected.copy()
    found[0, 0] = [0, 1, 0]
    assert compare(found, expected).argmax_agreement == 0.75


@pytest.mark.parametrize("expected", [np.zeros(3, np.float32), np.zeros((3, 1), np.float32), np.zeros((3, 2), np.int64)])
def test_no_argmax_where_there_is_no_choice(expected):
    assert compare(expected, expected).argmax_agreement is None


@pytest.mark.filterwarnings("error")
def test_nan_and_infinity_make_errors_that_are_within_no_limit():
    expected = np.array([[1.0, 2.0]], np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        errors = compare(np.array([[bad, 2.0]], np.float32), expected)
        assert not errors.max_abs <= 1e30
        assert not errors.mean_abs <= 1e30
    both = np.array([[np.inf, 2.0]], np.float32)
    assert np.isnan(compare(both, both).max_abs)
    assert num_not_finite(both) == 1


def test_numbers_that_json_cannot_hold_are_left_out():
    errors = compare(np.array([[np.nan, 2.0]], np.float32), np.array([[1.0, 2.0]], np.float32)).to_json()
    assert errors["max_abs"] is None
    assert errors["mean_cosine"] is None


def test_another_shape_is_infinitely_far():
    errors = compare(np.zeros((2, 3)), np.zeros((2, 4)))
    assert errors.max_abs == errors.mean_abs == np.inf
    assert errors.min_cosine is None


def test_texts_are_equal_or_not():
    expected = np.array(["cat", "cup"], object)
    assert compare(expected.copy(), expected).max_abs == 0
    assert max_error(np.array(["cat", "dog"], object), expected) == np.inf


@pytest.mark.filterwarnings("error")
def test_nothing_but_zeros_and_large_integers():
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros).max_rel == 0
    assert compare(zeros + 1, zeros).max_rel == np.inf
    assert mean_error(np.array([2**40 + 1]), np.array([2**40])) == 1.0
    assert max_error(np.array([0], np.uint8), np.array([255], np.uint8)) == 255  # not modulo 256


@pytest.mark.parametrize("num_values", [1, 7, 30, 1000])
def test_rows_in_parts_give_what_they_give_together(num_values, monkeypatch):
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(11, 5)).astype(np.float32)
    found = expected + rng.normal(size=expected.shape).astype(np.float32) * 0.1
    together = compare(found, expected).to_json()
    monkeypatch.setattr(parity, "_CHUNK_VALUES", num_values)
    assert compare(found, expected).to_json() == pytest.approx(together)
    assert [row for rows in parity.row_chunks(expected) for row in range(11)[rows]] == list(range(11))


def test_no_rows_have_no_errors():
    assert compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).max_abs == 0
