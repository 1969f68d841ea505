"""Nodes that fell back from the wanted provider, and those that may."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from training.export.certificate.placement import PlacedNode, SaysWhereNodesRun, fallen_back, placement_check, placement_facts
from training.export.onnx_graph import float_makers
from training.export.runners import OnnxRunner, TorchScriptRunner

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def node(operator, provider, *, floats=False, name=""):
    return PlacedNode(name=name or operator.lower(), operator=operator, provider=provider, floats=floats)


@pytest.mark.parametrize(
    ("placed", "fell"),
    [
        (node("Conv", CUDA, floats=True), False),
        (node("Conv", CPU, floats=True), True),
        (node("GridSample", CPU), True),  # of no known type, but it is no arithmetic on shapes
        (node("Shape", CPU), False),
        (node("Concat", CPU), False),
        (node("Concat", CPU, floats=True), True),  # data
        (node("Add", CPU, floats=True), True),
    ],
    ids=str,
)
def test_only_arithmetic_on_shapes_may_stay_on_the_cpu(placed, fell):
    assert bool(fallen_back([placed], CUDA)) == fell


def test_the_check_names_the_nodes_and_the_facts_name_all_of_them():
    nodes = [node("Conv", CUDA, floats=True), node("TopK", CPU, floats=True, name="/head/TopK"), node("Shape", CPU)]
    check = placement_check(nodes, CUDA)
    assert not check.passed
    assert check.value == 1
    assert "/head/TopK (TopK) on CPUExecutionProvider" in check.detail
    assert placement_facts(nodes, CUDA) == {
        "placement": {CPU: {"Shape": 1, "TopK": 1}, CUDA: {"Conv": 1}},
        "nodes_elsewhere": ["/head/TopK (TopK) on CPUExecutionProvider", "shape (Shape) on CPUExecutionProvider"],
        "num_nodes_elsewhere": 2,
    }
    assert placement_check(nodes[:1], CUDA).passed


def _graph(path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="size"),
        helper.make_node("Relu", ["x"], ["r"], name="data"),
        helper.make_node("Reshape", ["r", "s"], ["y"], name="form"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_nodes_that_make_floats_are_found_by_type(tmp_path):
    assert float_makers(_graph(tmp_path / "model.onnx")) == {"data", "form"}


def test_onnx_runtime_tells_where_each_node_runs(tmp_path):
    class Signature:
        outputs = ()

    runner = OnnxRunner(_graph(tmp_path / "model.onnx"), Signature())
    nodes = runner.placement()
    assert isinstance(runner, SaysWhereNodesRun)
    assert {node.operator for node in nodes} >= {"Relu"}
    assert {node.provider for node in nodes} == {CPU}
    assert placement_check(nodes, runner.wanted_provider).passed
    assert issubclass(TorchScriptRunner, SaysWhereNodesRun)
