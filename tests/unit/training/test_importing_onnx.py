"""ONNX files: checked, and their face changed without changing their answers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry.errors import UsageError
from training.importing.onnx_file import bring_onnx
from training.importing.request import Adaptation, ImportRequest, Normalization
from training.importing.sample import Sample
from training.recipe import ExportConfig

ROWS = 5
RNG = np.random.default_rng(0)


def recurrent(batch="batch"):
    """x [n, 3], state [2, n, 3], rate []; y = x @ w + mean of the state, next = state * rate, by a branch on the rate."""
    weights = RNG.normal(size=(3, 3)).astype(np.float32)
    then = helper.make_graph(
        [helper.make_node("Mul", ["state", "high"], ["then_state"])],
        "then",
        [],
        [helper.make_tensor_value_info("then_state", TensorProto.FLOAT, None)],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["state"], ["else_state"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_state", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("ReduceMean", ["state", "zero"], ["mean"], keepdims=0),
            helper.make_node("Add", ["product", "mean"], ["y"]),
            helper.make_node("Greater", ["rate", "limit"], ["is_high"]),
            helper.make_node("If", ["is_high"], ["next"], then_branch=then, else_branch=otherwise),
        ],
        "recurrent",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, batch, 3]),
            helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3]),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, batch, 3]),
        ],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(np.array(8000), "limit"),
            numpy_helper.from_array(np.float32(2), "high"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _run(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def _bring(tmp_path, model, inputs, *, outputs=None, dynamic=None, **adaptation):
    file = tmp_path / "given.onnx"
    if model is not None:
        onnx.save(model, file)
    np.savez(tmp_path / "sample.npz", **inputs)
    into = tmp_path / "source"
    into.mkdir()
    request = ImportRequest(
        file=file,
        name="m",
        sample=tmp_path / "sample.npz",
        export=ExportConfig(outputs=outputs, dynamic=dynamic or {}),
        adaptation=Adaptation(**adaptation),
    )
    return bring_onnx(request, Sample(inputs=inputs), into), into / "model.onnx"


X = RNG.normal(size=(ROWS, 3)).astype(np.float32)
STATE = RNG.normal(size=(ROWS, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 4000])
def test_a_bound_input_and_a_moved_batch_answer_as_before(tmp_path, rate):
    model = recurrent()
    brought, path = _bring(tmp_path, model, {"state": STATE, "x": X}, fixed={"rate": rate}, batch_axes={"state": 1, "next": 1})
    assert list(brought.inputs) == ["x", "state"]  # the graph's order
    onnx.save(model, tmp_path / "before.onnx")
    before = _run(tmp_path / "before.onnx", {"x": X, "state": STATE.transpose(1, 0, 2), "rate": np.array(rate)})
    after = _run(path, {"x": X, "state": STATE})
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6)
    np.testing.assert_allclose(after["next"].transpose(1, 0, 2), before["next"], rtol=1e-6)
    np.testing.assert_allclose(after["next"], STATE * (2 if rate > 8000 else 1), rtol=1e-6)
    onnx.checker.check_model(str(path), full_check=True)


def test_outputs_are_renamed_and_moved_by_their_new_names(tmp_path):
    _, path = _bring(
        tmp_path, recurrent(), {"x": X, "state": STATE}, outputs=("score", "x2"), fixed={"rate": 1}, batch_axes={"state": 1, "x2": 1}
    )
    after = _run(path, {"x": X, "state": STATE})
    assert list(after) == ["score", "x2"]
    np.testing.assert_allclose(after["x2"], STATE, rtol=1e-6)


@pytest.mark.parametrize("mean", [(127.0,), (100.0, 110.0, 120.0)])
def test_normalization_goes_before_the_input(tmp_path, mean):
    pixels = RNG.integers(0, 256, (ROWS, 3), dtype=np.uint8)
    how = Normalization(mean=mean, std=(2.0,), scale=0.5)
    model = recurrent()
    _, path = _bring(
        tmp_path, model, {"x": pixels, "state": STATE}, fixed={"rate": 1}, batch_axes={"state": 1, "next": 1}, normalize={"x": how}
    )
    onnx.save(model, tmp_path / "before.onnx")
    given = ((pixels * 0.5 - np.array(mean)) / 2).astype(np.float32)
    before = _run(tmp_path / "before.onnx", {"x": given, "state": STATE.transpose(1, 0, 2), "rate": np.array(1)})
    np.testing.assert_allclose(_run(path, {"x": pixels, "state": STATE})["y"], before["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "missing: rate"),
        ({"fixed": {"speed": 1}}, r"--fix names an input that the graph does not have \(speed\)"),
        ({"fixed": {"rate": 1}, "normalize": {"z": Normalization()}}, "--normalize names an input"),
        ({"fixed": {"rate": 1}, "batch_axes": {"z": 1}}, "neither an input nor an output"),
        ({"fixed": {"rate": 1}, "batch_axes": {"state": 3}}, "has no dimension 3"),
        ({"fixed": {"rate": 1}}, r"the batch dimension of input state is fixed \(2\)"),
        ({"fixed": {"rate": 1}, "batch_axes": {"state": 1}, "dynamic": {"x": (1,)}}, r"the dimension 1 of input x is fixed \(3\)"),
        ({"fixed": {"rate": 1}, "outputs": ("one",)}, r"2 outputs, --outputs names 1"),
    ],
)
def test_options_that_do_not_fit_the_graph_are_refused(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        _bring(tmp_path, recurrent(), {"x": X, "state": STATE}, **arguments)


def test_a_fixed_batch_and_a_wrong_type_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"the batch dimension of input x is fixed \(5\)"):
        _bring(tmp_path, recurrent(ROWS), {"x": X, "state": STATE}, fixed={"rate": 1}, batch_axes={"state": 1})
    (tmp_path / "source").rmdir()
    with pytest.raises(UsageError, match=r"another type than the graph's input \(float64, float32\)"):
        _bring(tmp_path, recurrent(), {"x": X.astype(np.float64), "state": STATE}, fixed={"rate": 1}, batch_axes={"state": 1})


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    (tmp_path / "given.onnx").write_bytes(b"not a graph")
    with pytest.raises(UsageError, match=r"not a valid ONNX file .*given\.onnx"):
        _bring(tmp_path, None, {"x": X})


def _external(tmp_path):
    onnx.save(recurrent(), tmp_path / "given.onnx", save_as_external_data=True, location="given.onnx.data", size_threshold=0)
    return tmp_path / "given.onnx.data"


def test_external_data_are_taken_along(tmp_path):
    _external(tmp_path)
    _, path = _bring(tmp_path, None, {"x": X, "state": STATE}, fixed={"rate": 1}, batch_axes={"state": 1})
    assert set(_run(path, {"x": X, "state": STATE})) == {"y", "next"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [("missing", "not regular file"), ("cut", r"cut off \(given\.onnx\.data: \d+ bytes, \d+ needed\)"), ("link", "symbolic link")],
)
def test_external_data_that_are_not_whole_beside_the_graph_are_refused(tmp_path, fault, words):
    data = _external(tmp_path)
    if fault == "cut":
        data.write_bytes(data.read_bytes()[:-4])
    elif fault == "missing":
        data.unlink()
    else:
        data.rename(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=words):
        _bring(tmp_path, None, {"x": X, "state": STATE}, fixed={"rate": 1}, batch_axes={"state": 1})
