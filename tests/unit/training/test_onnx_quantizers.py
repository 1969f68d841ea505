"""The ONNX quantizers on models of their kind: sound ones pass, each planted fault fails, and what does not fit says why."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from support.planted import Planted, edit_graph, edit_tensor, failed, subject
from training.export.onnx_graph import fp32_graph
from training.export.quantization.activation_ranges import clipped_share
from training.export.quantization.onnx_quantized import matmul_graph, notes_of, prepared_graph, rounded_weights, weight_error_steps
from training.export.variants.onnx_int4_weights import OnnxInt4Weights
from training.export.variants.onnx_int8_dynamic import OnnxInt8Dynamic
from training.export.variants.onnx_int8_static import OnnxInt8Static

pytestmark = pytest.mark.usefixtures("short_latency")

EXPORTERS = (OnnxInt8Static(), OnnxInt8Dynamic(), OnnxInt4Weights())
EACH = pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda exporter: exporter.name)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two matrices of 768 x 768 and a small one."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(768, 768), torch.nn.ReLU(), torch.nn.Linear(768, 768), torch.nn.ReLU(), torch.nn.Linear(768, 4)
    ).eval()
    inputs = {"input": np.random.default_rng(0).normal(size=(128, 768)).astype(np.float32)}
    return subject(model, inputs, tmp_path_factory.mktemp("wide") / "scratch")


def _certificate(of, exporter, tmp_path):
    # Untrained matrices of noise are the worst case of four bits: 1.4% of the variance is lost.
    return of.measured(exporter, tmp_path / "variant", accuracy_drop=0.05).certificate


@EACH
def test_a_sound_variant_passes(exporter, wide, tmp_path):
    assert exporter.unfit(wide.model, wide.context) is None
    certificate = _certificate(wide, exporter, tmp_path)
    assert certificate.passed, certificate.failures
    assert certificate.facts["quantized_nodes"] == (2 if exporter.name == "onnx-int4-weights" else 3)
    assert certificate.facts["size_bytes"] < wide.context.scratch.joinpath("fp32/model.onnx").stat().st_size / 3


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_one_flipped_bit_in_a_weight_fails(exporter, seed, wide, tmp_path):
    """The second of four bits, so two steps: less than any tolerance on answers would see."""
    generator = np.random.default_rng(seed)

    def flip(array):
        array.reshape(-1).view(np.uint8)[generator.integers(array.size)] ^= 2
        return array

    def damage(graph):
        names = [tensor.name for tensor in graph.graph.initializer if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)]
        sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.graph.initializer}
        edit_tensor(graph, max(names, key=lambda name: sizes[name]), flip)

    found = failed(_certificate(wide, Planted(exporter, edit_graph(damage)), tmp_path))
    assert "weights/max_error_steps" in found
    assert not {name for name in found if name.startswith("parity/")}


@EACH
def test_a_quantizer_that_did_nothing_fails(exporter, wide, tmp_path):
    def undo(directory):
        shutil.copyfile(fp32_graph(wide.model, wide.context), directory / "model.onnx")

    found = failed(_certificate(wide, Planted(exporter, undo), tmp_path))
    assert "quantized_nodes" in found
    assert not {name for name in found if name.startswith("parity/")}


@EACH
def test_a_wrong_scale_fails(exporter, wide, tmp_path):
    def damage(graph):
        name = next(t.name for t in graph.graph.initializer if "scale" in t.name and np.prod(t.dims) >= 768)

        def double(array):
            array.reshape(-1)[5] *= 2
            return array

        edit_tensor(graph, name, double)

    assert "weights/max_error_steps" in failed(_certificate(wide, Planted(exporter, edit_graph(damage)), tmp_path))


def test_a_calibration_set_of_constants_fails(wide, tmp_path):
    rows = wide.context.calibration
    constant = dataclasses.replace(rows, inputs={"input": np.zeros_like(rows.inputs["input"])})
    (tmp_path / "own").mkdir()
    context = dataclasses.replace(wide.context, calibration=constant, scratch=tmp_path / "own")
    of_constants = dataclasses.replace(wide, context=context)
    certificate = _certificate(of_constants, OnnxInt8Static(), tmp_path)
    found = failed(certificate)
    assert "export" not in found, certificate.failures
    assert {"calibration/num_varying_inputs", "activations/max_clipped_share"} <= found


def test_ranges_that_are_too_small_fail_by_the_files_alone(wide, tmp_path):
    """The calibration rows are sound; the file's range of the input is not."""

    def damage(graph):
        node = next(node for node in graph.graph.node if node.op_type == "QuantizeLinear")
        edit_tensor(graph, node.input[1], lambda scale: scale / 10)

    assert "activations/max_clipped_share" in failed(_certificate(wide, Planted(OnnxInt8Static(), edit_graph(damage)), tmp_path))


def test_what_was_chosen_is_in_the_file(wide, tmp_path):
    certificate = _certificate(wide, OnnxInt8Static(), tmp_path)
    notes = notes_of(onnx.load(tmp_path / "variant" / "model.onnx"))
    assert notes["calibration"] == certificate.facts["calibration"]
    assert notes["calibration"] in ("minmax", "entropy", "percentile")
    assert notes["excluded_nodes"] == "[]"
    assert certificate.facts["excluded_nodes"] == []


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.linear = torch.nn.Linear(32, 3)

    def forward(self, input):
        return self.linear(self.lstm(input)[0][:, -1])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")  # torch.export's own, of an LSTM
def test_an_lstm_runs_in_integers_and_its_weights_are_compared(tmp_path):
    torch.manual_seed(0)
    model = Recurrent().eval()
    of = subject(model, {"input": np.random.default_rng(0).normal(size=(64, 5, 12)).astype(np.float32)}, tmp_path / "scratch")
    certificate = of.measured(OnnxInt8Dynamic(), tmp_path / "variant").certificate
    assert certificate.passed, certificate.failures
    assert certificate.facts["operators"]["DynamicQuantizeLSTM"] == 2
    graph, original = onnx.load(tmp_path / "variant" / "model.onnx"), onnx.load(matmul_graph(model, of.context))
    assert weight_error_steps(graph, original) <= 0.5001
    lstm = next(node for node in graph.graph.node if node.op_type == "DynamicQuantizeLSTM")

    def flip(array):
        array[0, 3, 7] ^= 4
        return array

    edit_tensor(graph, lstm.input[2], flip)
    assert weight_error_steps(graph, original) > 3


@pytest.mark.parametrize(
    ("exporter", "model", "reason"),
    [
        (OnnxInt8Dynamic(), torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), "no matrix products"),
        (OnnxInt8Dynamic(), torch.nn.Embedding(1000, 64), "no matrix products"),
        (OnnxInt4Weights(), torch.nn.Embedding(30_000, 384), "0 weights are in matrices"),
        (OnnxInt4Weights(), torch.nn.Linear(512, 512), "262144 weights are in matrices of 256 x 256"),
        (OnnxInt4Weights(), torch.nn.Linear(20_000, 255), "0 weights are in matrices"),
        (OnnxInt4Weights(), torch.nn.LSTM(512, 512), "0 weights are in matrices"),
        (OnnxInt4Weights(), torch.nn.Linear(1024, 1024), None),
        (OnnxInt8Dynamic(), torch.nn.LSTM(8, 8), None),
        (OnnxInt8Dynamic(), torch.nn.MultiheadAttention(8, 2), None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_fits(exporter, model, reason, wide):
    found = exporter.unfit(model, wide.context)
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize("exporter", [OnnxInt8Static(), OnnxInt8Dynamic()], ids=lambda exporter: exporter.name)
def test_eight_bits_are_for_cpus(exporter, wide):
    assert "CUDA" in (exporter.unfit(wide.model, dataclasses.replace(wide.context, target="cuda")) or "")


def test_of_a_given_graph_its_nodes_decide(wide, tmp_path):
    given = dataclasses.replace(wide.context, given_graph=fp32_graph(wide.model, wide.context), scratch=tmp_path)
    nothing = torch.nn.Identity()  # no module tells anything
    assert OnnxInt4Weights().unfit(nothing, given) is None
    assert OnnxInt8Dynamic().unfit(nothing, given) is None
    graph = onnx.load(given.given_graph)
    del graph.graph.initializer[:]
    onnx.save(graph, tmp_path / "empty.onnx")
    assert OnnxInt8Dynamic().unfit(nothing, dataclasses.replace(given, given_graph=tmp_path / "empty.onnx")) is not None


def test_nodes_without_names_are_given_some(wide, tmp_path):
    graph = onnx.load(fp32_graph(wide.model, wide.context))
    for node in graph.graph.node:
        node.name = ""
    onnx.save(graph, tmp_path / "model.onnx")
    (tmp_path / "own").mkdir()
    context = dataclasses.replace(wide.context, given_graph=tmp_path / "model.onnx", scratch=tmp_path / "own")
    names = [node.name for node in onnx.load(prepared_graph(wide.model, context)).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    of_given = dataclasses.replace(wide, context=context)
    assert of_given.measured(OnnxInt4Weights(), tmp_path / "variant").certificate.facts["quantized_nodes"] == 2


def test_the_root_logger_stays_as_it_was(wide, tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    _certificate(wide, OnnxInt4Weights(), tmp_path)
    assert (root.level, list(root.handlers)) == before


@pytest.mark.parametrize("rows", [32, 40, 256])
def test_four_bits_are_read_as_the_runtime_reads_them(rows, tmp_path):
    """The weights by an identity matrix, through ONNX Runtime's own node, are what is read from the file; 40 rows fill no whole block."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    from training.export.onnx_session import answers

    weight = np.random.default_rng(rows).normal(size=(rows, 24)).astype(np.float32)
    weight[:, 3] = 0
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", rows])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 24])],
        [numpy_helper.from_array(weight, "w")],
    )
    quantizer = MatMulNBitsQuantizer(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), block_size=32)
    quantizer.process()
    onnx.save(quantizer.model.model, tmp_path / "q.onnx")
    (found,) = rounded_weights(quantizer.model.model)
    (answer,) = answers(tmp_path / "q.onnx", {"x": np.eye(rows, dtype=np.float32)})
    np.testing.assert_allclose(found.value, answer, atol=1e-6)
    assert found.original == "w"
    assert (np.abs(found.value - weight) / found.step).max() <= 1.0


def test_the_share_beyond_a_range_is_measured(wide, tmp_path):
    (tmp_path / "v").mkdir()
    OnnxInt8Static().export(wide.model, wide.context, tmp_path / "v")
    graph, prepared = onnx.load(tmp_path / "v" / "model.onnx"), prepared_graph(wide.model, wide.context)
    inputs = wide.context.calibration.take(slice(0, 16))
    share, _ = clipped_share(graph, prepared, inputs)
    assert share < 0.05
    share, tensor = clipped_share(graph, prepared, {"input": inputs["input"] * 10})
    assert share > 0.5
    assert tensor


def test_what_shape_inference_leaves_behind_is_not_in_the_users_directory(tmp_path, monkeypatch):
    """onnxruntime writes the graph into the working directory when its symbolic inference fails, as it does on transformers."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    def fails(*args, **kwargs):
        Path("sym_shape_infer_temp.onnx").write_bytes(b"left")
        raise RuntimeError("Incomplete symbolic shape inference")

    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", fails)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    of = subject(torch.nn.Sequential(torch.nn.Linear(8, 4)), {"input": rows}, tmp_path / "scratch")
    assert prepared_graph(of.model, of.context).is_file()
    assert not list((tmp_path / "cwd").iterdir())


def test_the_bounds_of_relu6_are_no_weights_that_could_be_lost(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU6(), torch.nn.Flatten(), torch.nn.Linear(288, 4)).eval()
    rows = np.random.default_rng(0).normal(scale=4, size=(64, 3, 8, 8)).astype(np.float32)
    of = subject(model, {"input": rows}, tmp_path / "scratch")
    variant = OnnxInt8Static()
    variant.export(of.model, of.context, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx")
    assert "Clip" not in {node.op_type for node in graph.graph.node}  # its bounds went with it
    checks = {check.name: check for check in variant.inspect(tmp_path, of.model, of.context).checks}
    assert checks["weights/max_error_steps"].passed, checks["weights/max_error_steps"]
    assert checks["weights/max_rounding_steps"].passed
