"""Files of variants: the same bytes for the same model, nothing of this machine in them, any kind of model."""

from __future__ import annotations

import zipfile
from pathlib import Path

import lightning
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import training
from registry.errors import NotFound
from registry.names import ModelVersion
from training.data.batches import Rows
from training.evaluate import predict
from training.export.catalog import EXPORTERS, exporters
from training.export.certificate.certify import Reference, certify
from training.export.exporter import ExportContext
from training.export.quantization.onnx_quantized import count_quantized, weight_error_steps
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.onnx_int8_static import OnnxInt8Static
from training.export.variants.torchscript_fp32 import TorchScriptFp32
from training.export.variants.torchscript_graph import quiet_torchscript, save_traced
from training.interface import infer_signature, named_inputs
from training.recipe import load_recipe


class TwoHeads(lightning.LightningModule):
    """A user's LightningModule: two inputs, a dict of two outputs of the same shape."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        self.left = torch.nn.Linear(4, 3)
        self.right = torch.nn.Linear(2, 3)

    def forward(self, wide, narrow):
        left, right = self.left(wide), self.right(narrow)
        return {"first": left + right, "second": left - right}


@pytest.fixture
def two_heads(tmp_path):
    torch.manual_seed(0)
    model = TwoHeads().eval()
    rng = np.random.default_rng(0)
    inputs = {"wide": rng.normal(size=(64, 4)).astype(np.float32), "narrow": rng.normal(size=(64, 2)).astype(np.float32)}
    outputs = predict(model, inputs, outputs=None, task="classification")
    rows = Rows(inputs=inputs, target=outputs["first"].argmax(-1))
    example = named_inputs(model, {name: torch.from_numpy(array[:4]) for name, array in inputs.items()})
    signature = infer_signature(example, {name: torch.from_numpy(array[:4]) for name, array in outputs.items()})
    (tmp_path / "scratch").mkdir()
    context = ExportContext(signature=signature, example=example, calibration=rows, task="classification", scratch=tmp_path / "scratch")
    return model, Reference(signature=signature, rows=rows, outputs=outputs, task="classification"), context


def _certify(exporter, two_heads, directory, damage=None):
    model, reference, context = two_heads
    directory.mkdir()
    exporter.export(model, context, directory)
    if damage:
        damage(directory)
    return certify(
        directory,
        version=ModelVersion("two-heads", 1),
        source_sha256="",
        variant=exporter.name,
        reference=reference,
        limits=exporter.limits,
        accuracy_drop=0.05,
        inspection=exporter.inspect(directory, model, context),
    ).certificate


@pytest.mark.parametrize("exporter", [OnnxFp32(), TorchScriptFp32()], ids=lambda e: e.name)
def test_a_lightning_module_with_two_inputs_and_two_outputs(exporter, two_heads, tmp_path):
    certificate = _certify(exporter, two_heads, tmp_path / "variant")
    assert certificate.passed, certificate.failures
    assert {"parity/first/max_abs_error", "parity/second/max_abs_error"} <= {check.name for check in certificate.checks}


def test_swapped_outputs_fail(two_heads, tmp_path):
    def swap(directory):
        graph = onnx.load(directory / "model.onnx")
        names = {"first": "second", "second": "first"}
        for node in graph.graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]
        onnx.save(graph, directory / "model.onnx")

    certificate = _certify(OnnxFp32(), two_heads, tmp_path / "variant", swap)
    failed = {check.name for check in certificate.checks if not check.passed}
    assert {"parity/first/max_abs_error", "parity/second/max_abs_error"} <= failed


def _contexts(trained, tmp_path):
    from training.export.stage import measure_eager

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        yield tmp_path / name, measure_eager(trained, trained.recipe.export, scratch=tmp_path / name)[1]


@pytest.mark.parametrize("exporter", [OnnxFp32(), OnnxInt8Static()], ids=lambda e: e.name)
def test_the_same_model_gives_the_same_bytes(exporter, trained, tmp_path):
    files = []
    for directory, context in _contexts(trained, tmp_path):
        exporter.export(trained.model, context, directory)
        files.append((directory / "model.onnx").read_bytes())
    assert files[0] == files[1]


# A compiled library names its sources, for what it says when it fails.
@pytest.mark.parametrize("exporter", [exporter for exporter in EXPORTERS if exporter.name != "aoti"], ids=lambda e: e.name)
def test_no_file_names_a_path_of_this_machine(exporter, trained, tmp_path):
    directory, context = next(_contexts(trained, tmp_path))
    exporter.export(trained.model, context, directory)
    (model,) = directory.glob("model.*")
    content = model.read_bytes()
    for path in (b"site-packages", str(Path(training.__file__).parents[1]).encode(), str(tmp_path).encode()):
        assert path not in content


def test_the_batch_dimension_is_free_and_named(trained, tmp_path):
    directory, context = next(_contexts(trained, tmp_path))
    OnnxFp32().export(trained.model, context, directory)
    graph = onnx.load(directory / "model.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_weights_are_counted_in_steps():
    weight = np.array([[-1.0, 0.5], [0.25, 2.0]], np.float32)
    scale = np.array([1 / 64, 2 / 64], np.float32)  # one per column
    quantized = np.round(weight / scale).astype(np.int8)

    def graph(values):
        node = onnx.helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["w_DequantizeLinear"], axis=1)
        tensors = [numpy_helper.from_array(values, "w_quantized"), numpy_helper.from_array(scale, "w_scale")]
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], tensors))

    original = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(weight, "w")]))
    assert weight_error_steps(graph(quantized), original) <= 0.5
    quantized[1, 1] -= 3
    assert weight_error_steps(graph(quantized), original) == pytest.approx(3, abs=0.5)
    lost = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], []))
    assert weight_error_steps(lost, original) == float("inf")


def test_only_nodes_fed_by_integers_count_as_quantized():
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["xq", "s"], ["x"]),
        onnx.helper.make_node("DequantizeLinear", ["wq", "s"], ["w"]),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
        onnx.helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    assert count_quantized(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))) == 1


def test_an_unknown_variant_names_the_ones_there_are():
    assert [e.name for e in exporters(["torchscript-fp32", "onnx-fp32", "onnx-fp32"])] == ["torchscript-fp32", "onnx-fp32"]
    with pytest.raises(NotFound, match=r"onnx-fp32, .*onnx-int8-static, .*torchscript-fp32"):
        exporters(["onnx-fp64"])


def test_every_variant_of_a_built_in_recipe_exists():
    exporters(load_recipe("digits").export.variants or ())


def test_torchscript_keeps_the_version_of_newer_operators(tmp_path):
    """gelu is of a version that torch records at another place of the file."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU()).eval()
    save_traced(model, (torch.rand(2, 4),), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        (version,) = (name for name in archive.namelist() if name.endswith("version"))
        assert version.endswith("/.data/version")
        assert int(archive.read(version)) >= 10
    with quiet_torchscript():
        loaded = torch.jit.load(str(tmp_path / "model.pt"))
    rows = torch.rand(5, 4)
    torch.testing.assert_close(loaded(rows), model(rows))


def test_a_larger_budget_lowers_the_agreement_of_quantized_variants_only():
    limits = {exporter.name: exporter.limits for exporter in EXPORTERS}
    assert limits["onnx-int8-static"].within(0.05).min_agreement == 0.95
    assert limits["onnx-int8-static"].within(0.01).min_agreement == 0.97
    assert limits["onnx-fp32"].within(0.05) == limits["onnx-fp32"]
    assert {name for name, item in limits.items() if item.follows_budget} == {
        "onnx-int8-dynamic",
        "onnx-int8-static",
        "onnx-int4-weights",
        "torchscript-int8",
    }
