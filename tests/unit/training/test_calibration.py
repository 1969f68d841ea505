"""Reliability and calibration error, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.export.report.calibration import as_probabilities, reliability


def test_reliability_by_hand():
    # Four rows: two of confidence 0.95 (one right), one of 0.62 (right), one of 0.68 (wrong).
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.38, 0.62], [0.32, 0.68]])
    found = reliability(probabilities, np.array([0, 1, 1, 0]))
    assert found.num_rows == (2, 2)
    np.testing.assert_allclose(found.confidence, (0.65, 0.95))
    np.testing.assert_allclose(found.accuracy, (0.5, 0.5))
    assert found.error == pytest.approx(0.5 * 0.15 + 0.5 * 0.45)


def test_a_calibrated_model_has_no_error_and_a_sure_and_wrong_one_has_all():
    assert reliability(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])).error == 0
    assert reliability(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0])).error == 1


def test_logits_become_probabilities_and_probabilities_stay():
    logits = np.array([[1000.0, 0.0], [np.log(3.0), 0.0]], np.float64)
    np.testing.assert_allclose(as_probabilities(logits), [[1, 0], [0.75, 0.25]])
    probabilities = np.array([[0.25, 0.75]])
    assert as_probabilities(probabilities) is not probabilities
    np.testing.assert_array_equal(as_probabilities(probabilities), probabilities)
    positive_logits = np.array([[0.5, 0.6]])
    assert as_probabilities(positive_logits)[0, 0] == pytest.approx(1 / (1 + np.exp(0.1)))


@pytest.mark.filterwarnings("error")
def test_no_reliability_of_answers_that_are_not_finite():
    assert reliability(np.array([[np.nan, 1.0]]), np.array([0])) is None
    assert reliability(np.array([[np.inf, 1.0]]), np.array([0])) is None
