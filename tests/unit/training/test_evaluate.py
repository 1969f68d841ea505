"""Metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from registry.errors import UsageError
from training.data.batches import Rows
from training.evaluate import check_task, confusion_matrix, evaluate, predict, quality

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
TARGET = np.array([0, 1, 1, 2])


def test_classification_metrics():
    metrics = evaluate("classification", LOGITS, TARGET)
    assert metrics["accuracy"] == 0.75
    assert metrics["log_loss"] == pytest.approx(-np.mean(np.log([0.7, 0.8, 0.3, 0.8])))


def test_log_loss_of_huge_logits_is_finite():
    assert evaluate("classification", LOGITS * 1e6, TARGET)["log_loss"] < 1e7


def test_regression_metrics():
    target = np.array([1.0, 2.0, 3.0])
    metrics = evaluate("regression", np.array([[1.0], [2.0], [5.0]]), target)
    assert metrics == {"r2": pytest.approx(1 - 4 / 2), "rmse": pytest.approx((4 / 3) ** 0.5), "mae": pytest.approx(2 / 3)}
    assert quality("regression", target, target) == 1.0


def test_confusion_counts_rows_of_true_classes():
    np.testing.assert_array_equal(confusion_matrix(LOGITS, TARGET), [[1, 0, 0], [1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("task", "target", "output"),
    [
        ("classification", np.array([0.5, 1.5]), np.zeros((2, 3))),
        ("classification", np.array([[0], [1]]), np.zeros((2, 3))),
        ("classification", np.array([0, 3]), np.zeros((2, 3))),
        ("classification", np.array([-1, 1]), np.zeros((2, 3))),
        ("classification", np.array([0, 1]), np.zeros(2)),
        ("regression", np.array([0.0, 1.0]), np.zeros((2, 3))),
    ],
)
def test_a_task_that_the_data_do_not_fit_is_refused(task, target, output):
    with pytest.raises(UsageError):
        check_task(task, Rows(inputs={"x": np.zeros((2, 1))}, target=target), output)


def test_prediction_is_in_evaluation_mode_and_leaves_the_mode_alone():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.9))
    inputs = {"x": np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)}
    outputs = predict(model, inputs, outputs=None, task="classification")
    with torch.no_grad():
        expected = model[0](torch.from_numpy(inputs["x"])).numpy()
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    assert model.training
