"""Ranges of activations, also where the first rows say little of those that follow."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector

from training.data.batches import Rows
from training.export.quantization.activation_statistics import _make_room, measure_statistics


def _graph(path):
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def _number(saved):
    """As onnxruntime writes one: plain, or with its dtype."""
    return float(np.ravel(saved["data"] if isinstance(saved, dict) else saved)[0])


def test_a_row_of_silence_first_does_not_make_millions_of_bins():
    collector = HistogramCollector("entropy", symmetric=False, num_bins=128, num_quantized_bins=128, percentile=None, scenario=None)
    loud = np.linspace(-1, 1, 1000, dtype=np.float32)
    for values in (np.full(4, 1e-7, np.float32), loud, loud * 100):
        _make_room(collector, {"x": values})
        collector.collect({"x": [values]})
    counts, edges, low, high, _ = collector.histogram_dict["x"]
    assert len(counts) <= 8 * 128
    assert counts.sum() == 2004  # none was lost
    assert (float(low), float(high)) == (-100, 100)
    assert edges[-1] >= 100


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_ranges_are_those_of_all_rows(method, tmp_path):
    _graph(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.full((1, 4), 1e-6), rng.uniform(-2, 2, size=(200, 4))]).astype(np.float32)
    found = measure_statistics(tmp_path / "model.onnx", Rows(inputs={"x": rows}, target=np.zeros(len(rows))), tmp_path)
    bounds = json.loads(found.ranges[method].read_text())["data"]["y"]
    assert _number(bounds["lowest"]) == pytest.approx(-2, rel=0.2)
    assert _number(bounds["highest"]) == pytest.approx(2, rel=0.2)
    assert found.moments["product"].count >= len(rows)
