"""Errors of a quantized graph's layers, on graphs of one and two layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from training.export.certificate.layers import layer_errors

X = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
W = np.eye(3, dtype=np.float32)


def _save(path, nodes, **tensors):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in tensors.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def original(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    return _save(tmp_path / "original.onnx", nodes, w=W)


def test_the_layer_that_is_off_is_the_one_that_shows(original, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "off"], ["y"]),
    ]
    errors = layer_errors(_save(tmp_path / "v.onnx", nodes, w=W, off=W * 1.5), original, X)
    positive = np.maximum(X["x"], 0)
    assert errors["a"] == 0
    assert errors["y"] == pytest.approx(0.5 * positive.mean() / positive.max(), rel=1e-4)
    assert list(errors) == ["a", "y"]


def test_an_activation_that_rounding_replaces_is_compared_after_rounding(original, tmp_path):
    """As ONNX Runtime's quantizer does it: the layer writes what the activation wrote, and rounding from zero on cuts the rest."""
    scale, zero = np.array(0.02, np.float32), np.array(0, np.uint8)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r_DequantizeLinear_Output"]),
        helper.make_node("MatMul", ["r_DequantizeLinear_Output", "w"], ["y"]),
    ]
    errors = layer_errors(_save(tmp_path / "v.onnx", nodes, w=W, s=scale, z=zero), original, X)
    assert list(errors) == ["r", "y"]
    assert 0 < errors["r"] <= 0.01 / np.maximum(X["x"], 0).max()


def test_graphs_without_a_layer_in_common_and_large_ones_have_nothing_to_compare(original, tmp_path):
    other = _save(tmp_path / "v.onnx", [helper.make_node("Relu", ["x"], ["b"]), helper.make_node("Identity", ["b"], ["y"])])
    other_original = _save(tmp_path / "o.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    assert layer_errors(other, other_original, X) == {}
    (tmp_path / "original.onnx.data").write_bytes(b"")
    assert layer_errors(original, original, X) == {}
