"""The search among quantizations, and what it searches with: products seen as matrices, moments, ranges and rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from training.data.batches import Rows
from training.export.exporter import Limits
from training.export.onnx_session import answers
from training.export.quantization.activation_statistics import METHODS, Moments, measure_statistics
from training.export.quantization.products import products
from training.export.quantization.search import Score, for_few_judges, score, search, split
from training.export.quantization.weight_rounding import LARGEST, round_together, rounded_graph

LIMITS = Limits(max_error=0.25, mean_error=0.01, row_error=0.01, min_agreement=0.97)
GOOD = Score(agreement=1.0, drop=0.0, mean_error=0.001, max_error=0.01)
BAD = Score(agreement=0.5, drop=0.5, mean_error=0.1, max_error=1.0)


def _search(trial, *, nodes=40, max_excluded=30, methods=("minmax", "entropy")):
    asked = []

    def recorded(method, excluded):
        asked.append((method, len(excluded)))
        return trial(method, excluded)

    names = [f"node{number}" for number in range(nodes)]
    choice = search(methods, recorded, lambda method: names, max_excluded=max_excluded, limits=LIMITS, accuracy_drop=0.01)
    return choice, asked


def test_where_all_nodes_can_be_quantized_nothing_else_is_tried():
    choice, asked = _search(lambda method, excluded: GOOD)
    assert (choice.method, choice.excluded, choice.holds) == ("minmax", (), True)
    assert asked == [("minmax", 0), ("entropy", 0)]


def test_the_method_with_fewer_changed_classes_is_kept():
    better = Score(agreement=0.99, drop=0.0, mean_error=0.005, max_error=0.1)
    worse = Score(agreement=0.98, drop=0.0, mean_error=0.001, max_error=0.1)
    choice, _ = _search(lambda method, excluded: better if method == "entropy" else worse)
    assert choice.method == "entropy"
    assert choice.scores == {"minmax": worse, "entropy": better}


def test_a_method_that_holds_goes_before_one_that_agrees_more():
    holds = Score(agreement=0.98, drop=0.0, mean_error=0.005, max_error=0.1)
    drops = Score(agreement=0.99, drop=0.02, mean_error=0.005, max_error=0.1)
    assert _search(lambda method, excluded: drops if method == "minmax" else holds)[0].method == "entropy"


@pytest.mark.parametrize("needed", [1, 2, 3, 7, 8, 13, 30])
def test_the_fewest_nodes_are_left_out(needed):
    choice, asked = _search(lambda method, excluded: GOOD if len(excluded) >= needed else BAD)
    assert choice.holds
    assert choice.excluded == tuple(f"node{number}" for number in range(needed))
    assert len(asked) <= 2 + 10


def test_no_more_nodes_are_left_out_than_may_be():
    choice, asked = _search(lambda method, excluded: GOOD if len(excluded) > 30 else BAD)
    assert not choice.holds
    assert max(count for _, count in asked) == 30


def test_where_none_holds_the_best_that_was_seen_is_kept():
    def trial(method, excluded):
        return Score(agreement=0.9 - abs(len(excluded) - 4) / 100, drop=0.1, mean_error=0.1, max_error=0.5)

    choice, _ = _search(trial)
    assert not choice.holds
    assert len(choice.excluded) == 4


def test_nan_is_the_worst():
    nan = Score(agreement=float("nan"), drop=float("nan"), mean_error=float("nan"), max_error=float("nan"))
    assert not nan.holds(LIMITS, 0.5)
    assert _search(lambda method, excluded: nan if method == "minmax" else BAD)[0].method == "entropy"


def test_judges_are_not_calibrated_on():
    rows = Rows(inputs={"x": np.arange(40)[:, None]}, target=np.arange(40))
    calibration, judges = split(rows)
    assert len(calibration) == 30
    assert len(judges) == 10
    assert not set(calibration.target) & set(judges.target)
    assert (judges.inputs["x"][:, 0] == judges.target).all()


def test_a_single_row_calibrates_and_judges():
    calibration, judges = split(Rows(inputs={"x": np.zeros((1, 2))}, target=np.zeros(1)))
    assert len(calibration) == len(judges) == 1


def test_a_score_has_the_numbers_of_the_worst_output():
    target = np.array([1, 0, 1, 1])
    right = [np.array([[0, 1], [1, 0], [0, 1], [0, 4.0]]), np.full((4, 1), 10.0)]
    found = [np.array([[0, 1], [1, 0], [2, 1], [0, 4.0]]), np.array([[10], [10], [10], [5.0]])]
    result = score("classification", right, found, target)
    assert result == Score(agreement=0.75, drop=0.25, mean_error=0.125, max_error=0.5)


FLOAT = onnx.TensorProto.FLOAT


def _model(node, weight, bias, input_shape):
    value = onnx.helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(weight, "w"), *([numpy_helper.from_array(bias, "b")] if bias is not None else [])]
    graph = onnx.helper.make_graph([node], "g", [value("x", FLOAT, ["n", *input_shape])], [value("y", FLOAT, None)], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _conv(channels, outputs, kernel, **attributes):
    generator = np.random.default_rng(5)
    weight = generator.normal(size=(outputs, channels // attributes.get("group", 1), *kernel)).astype(np.float32)
    bias = generator.normal(size=outputs).astype(np.float32)
    return _model(onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], name="it", **attributes), weight, bias, (channels, 9, 8))


def _gemm(turned):
    generator = np.random.default_rng(5)
    weight = generator.normal(size=(6, 4) if turned else (4, 6)).astype(np.float32)
    bias = generator.normal(size=4 if turned else 6).astype(np.float32)
    inputs = 6 if turned else 4
    node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="it", transB=0 if turned else 1)
    return _model(node, weight if turned else weight.T.copy(), bias, (inputs,))


CASES = {
    "conv": lambda: _conv(3, 5, (3, 3)),
    "conv with strides and uneven pads": lambda: _conv(3, 5, (3, 2), strides=[2, 3], pads=[1, 0, 2, 1]),
    "grouped conv": lambda: _conv(4, 6, (3, 3), group=2),
    "depthwise conv": lambda: _conv(4, 4, (3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
    "gemm": lambda: _gemm(turned=True),
    "gemm, weight the other way": lambda: _gemm(turned=False),
    "matmul": lambda: _model(
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="it"),
        np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32),
        None,
        (7, 4),
    ),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_samples_times_matrices_are_the_nodes_answers(make, tmp_path):
    model = make()
    data = _data(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (product,) = products(model.graph, tensors)
    samples = product.samples(data, 10_000, np.random.default_rng(0))  # all positions
    matrices = product.as_matrices(tensors["w"])
    found = np.einsum("gok,gpk->pgo", matrices, samples).reshape(samples.shape[1], -1)
    found = found + tensors["b"] if product.bias else found
    (expected,) = answers(model, {"x": data})
    outputs = found.shape[1]
    expected = np.moveaxis(expected, 1, -1).reshape(-1, outputs) if product.kernel else expected.reshape(-1, outputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(product.as_stored(matrices, tensors["w"].shape), tensors["w"])


def _data(model, rows=6):
    shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    mixing = np.random.default_rng(1).normal(size=(np.prod(shape), np.prod(shape))) / np.sqrt(np.prod(shape))
    values = np.random.default_rng(2).normal(size=(rows, np.prod(shape))) @ mixing + 0.7  # features that go together, as they do
    return values.reshape(rows, *shape).astype(np.float32)


@pytest.mark.parametrize(
    "make", [CASES["conv"], CASES["depthwise conv"], CASES["gemm"], CASES["matmul"]], ids=["conv", "deep", "gemm", "mm"]
)
def test_rounding_for_the_data_keeps_answers_better_than_rounding_to_the_nearest(make, tmp_path):
    model = make()
    onnx.save(model, tmp_path / "model.onnx")
    data = _data(model, rows=512)
    statistics = measure_statistics(tmp_path / "model.onnx", Rows(inputs={"x": data}, target=np.zeros(512)), tmp_path)
    rounded_graph(tmp_path / "model.onnx", statistics.moments, tmp_path / "rounded.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (product,) = products(model.graph, tensors)
    weight = product.as_matrices(tensors["w"])
    step = np.abs(weight).max(axis=-1, keepdims=True) / LARGEST
    nearest = onnx.ModelProto()
    nearest.CopyFrom(model)
    nearest.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(product.as_stored(np.round(weight / step) * step, tensors["w"].shape), "w")
    )
    (right,), (plain,), (better,) = (answers(m, {"x": data}) for m in (model, nearest, tmp_path / "rounded.onnx"))
    assert np.square(better - right).mean() < 0.9 * np.square(plain - right).mean()
    rounded = numpy_helper.to_array(onnx.load(tmp_path / "rounded.onnx").graph.initializer[0])
    moved = np.abs(product.as_matrices(rounded) - weight) / step
    assert moved.max() <= 1.0001
    in_steps = product.as_matrices(rounded) / step
    np.testing.assert_allclose(in_steps, np.round(in_steps), atol=1e-4)


def test_nodes_that_are_left_keep_their_weights(tmp_path):
    model = CASES["conv"]()
    onnx.save(model, tmp_path / "model.onnx")
    rows = Rows(inputs={"x": _data(model)}, target=np.zeros(6))
    statistics = measure_statistics(tmp_path / "model.onnx", rows, tmp_path)
    rounded_graph(tmp_path / "model.onnx", statistics.moments, tmp_path / "rounded.onnx", leave=["it"])
    assert onnx.load(tmp_path / "rounded.onnx").graph.initializer == model.graph.initializer


def test_the_range_by_min_and_max_is_what_was_seen(tmp_path):
    from onnxruntime.quantization.calibrate import load_tensors_data

    model = CASES["conv"]()
    onnx.save(model, tmp_path / "model.onnx")
    data = _data(model, rows=150)
    statistics = measure_statistics(tmp_path / "model.onnx", Rows(inputs={"x": data}, target=np.zeros(150)), tmp_path)
    assert set(statistics.ranges) == set(METHODS)
    (right,) = answers(model, {"x": data})
    for method, kind in METHODS.items():
        found = load_tensors_data(statistics.ranges[method])
        assert found.calibration_method == kind
        low, high = found["y"].range_value
        if method == "minmax":
            assert (float(low), float(high)) == pytest.approx((right.min(), right.max()), abs=1e-5)
        else:
            assert right.min() - 1e-5 <= float(low) < 0 < float(high) <= right.max() + 1e-5


@pytest.mark.parametrize("value", [0.0, 1.0, 1234.567])
def test_inputs_that_never_vary_still_round(value):
    moments = Moments()
    levels = np.linspace(0.1, 1, 300, dtype=np.float32) * np.float32(value)
    for _ in range(5):
        moments.add(np.tile(levels, (1, 77, 1)))
    weight = np.random.default_rng(0).normal(size=(1, 3, 300))
    for centred in (True, False):
        rounded = round_together(weight, moments, centred=centred)
        assert np.isfinite(rounded).all()
        assert (np.abs(rounded - weight) <= np.abs(weight).max(axis=-1, keepdims=True) / LARGEST * 1.0001).all()


@pytest.mark.parametrize(("num_judges", "least"), [(1, 1.0), (32, 0.98853), (512, 0.95963)])
def test_few_judging_rows_ask_for_more_agreement(num_judges, least):
    limits = Limits(max_error=1, mean_error=1, row_error=1, min_agreement=0.95)
    asked = for_few_judges(limits, num_judges=num_judges)
    assert asked.min_agreement == pytest.approx(least, abs=1e-5)
    assert (asked.max_error, asked.mean_error) == (1, 1)
