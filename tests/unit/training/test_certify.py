"""Certificates: sound variants pass, and no planted fault does. Every test names the check that must catch it."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from registry.bundle import CERTIFICATE
from registry.certificate import Certificate
from registry.names import ModelVersion
from training.export import stage
from training.export.catalog import EXPORTERS
from training.export.certify import NUM_GOLDEN
from training.export.onnx_fp32 import OnnxFp32
from training.export.onnx_graph import fp32_graph
from training.export.onnx_int8_static import OnnxInt8Static
from training.export.runners import OnnxRunner, open_variant
from training.export.torchscript_fp32 import TorchScriptFp32
from training.source.trained import TrainedSource

VERSION = ModelVersion("digits", 1)


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """Reference and context of the trained model; the context's graphs are made once for all tests."""
    return stage.measure_eager(trained, trained.recipe.export, scratch=tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def certificate_of(trained, measured, tmp_path):
    """Certifies an exporter, whose files a fault may have been planted in."""
    reference, context = measured

    def certify(exporter, source: TrainedSource = trained, *, reference=reference, context=context):
        return stage.export_variant(
            exporter,
            source,
            version=VERSION,
            config=source.recipe.export,
            reference=reference,
            context=context,
            directory=tmp_path / "variant",
        ).certificate

    return certify


class Planted:
    """An exporter with a fault: the real one writes the files, then `damage` changes them."""

    def __init__(self, exporter, damage):
        self.name, self.limits, self.inspect = exporter.name, exporter.limits, exporter.inspect
        self._exporter, self._damage = exporter, damage

    def export(self, model, context, into):
        self._exporter.export(model, context, into)
        self._damage(into)


class OfAnother:
    """An exporter that exports another model than the one that is certified."""

    def __init__(self, exporter, model):
        self.name, self.limits = exporter.name, exporter.limits
        self._exporter, self._model = exporter, model

    def export(self, model, context, into):
        fresh = dataclasses.replace(context, scratch=into.parent / "other")
        self._exporter.export(self._model, fresh, into)

    def inspect(self, directory, model, context):
        return self._exporter.inspect(directory, model, context)


def _edit_graph(edit):
    def damage(directory: Path):
        graph = onnx.load(directory / "model.onnx")
        edit(graph)
        onnx.save(graph, directory / "model.onnx")

    return damage


def _edit_tensor(graph, name, change):
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            tensor.CopyFrom(numpy_helper.from_array(change(array), name))
            return
    raise AssertionError(f"no tensor {name}")


def _failed(certificate: Certificate) -> set[str]:
    assert not certificate.passed
    return {check.name for check in certificate.checks if not check.passed}


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda e: e.name)
def test_a_sound_variant_passes_with_numbers(exporter, certificate_of, measured, tmp_path):
    certificate = certificate_of(exporter)
    assert certificate.passed, certificate.failures
    assert certificate.facts["latency"]["batch_1"]["p50_ms"] > 0
    assert certificate.facts["accuracy"]["eager"] > 0.85
    assert certificate.facts["size_bytes"] == sum(p.stat().st_size for p in (tmp_path / "variant").glob("model.*"))
    stored = Certificate.from_json(json.loads((tmp_path / "variant" / CERTIFICATE).read_text()))
    assert stored == certificate


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda e: e.name)
def test_the_golden_rows_are_met_within_a_bounded_tolerance(exporter, trained, measured, tmp_path):
    reference, context = measured
    result = stage.export_variant(
        exporter,
        trained,
        version=VERSION,
        config=trained.recipe.export,
        reference=reference,
        context=context,
        directory=tmp_path / "v",
    )
    tolerance = result.tolerance["logits"]
    golden = slice(0, NUM_GOLDEN)
    answer = open_variant(tmp_path / "v", reference.signature).run(reference.rows.take(golden))["logits"]
    np.testing.assert_allclose(answer, reference.outputs["logits"][golden], **tolerance)
    assert 0 < tolerance["atol"] <= exporter.limits.max_error * reference.peak("logits")


FP32_TENSORS = ("model.classifier.1.weight", "model.classifier.1.bias", "model.classifier.4.weight", "model.classifier.4.bias")


@pytest.mark.parametrize("name", FP32_TENSORS)
def test_one_weight_with_its_sign_flipped_fails_onnx_fp32(name, certificate_of):
    def flip(array):
        array.flat[np.abs(array).argmax()] *= -1
        return array

    failed = _failed(certificate_of(Planted(OnnxFp32(), _edit_graph(lambda graph: _edit_tensor(graph, name, flip)))))
    assert "parity/logits/max_abs_error" in failed


def test_one_weight_with_its_sign_flipped_fails_torchscript(trained, certificate_of):
    other = copy.deepcopy(trained.model)
    with torch.no_grad():
        other.features[0].weight.view(-1)[5] *= -1
    assert "parity/logits/max_abs_error" in _failed(certificate_of(OfAnother(TorchScriptFp32(), other)))


@pytest.mark.parametrize("seed", range(5))
def test_one_flipped_bit_in_a_random_int8_weight_fails_onnx_int8(seed, certificate_of):
    rng = np.random.default_rng(seed)

    def damage(graph):
        quantized = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8 and np.prod(t.dims) > 64]
        chosen = quantized[rng.integers(len(quantized))]

        def flip(array):
            array.reshape(-1).view(np.uint8)[rng.integers(array.size)] ^= 1 << int(rng.integers(1, 8))
            return array

        _edit_tensor(graph, chosen.name, flip)

    assert "weights/max_error_steps" in _failed(certificate_of(Planted(OnnxInt8Static(), _edit_graph(damage))))


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda e: e.name)
def test_permuted_labels_fail(exporter, trained, certificate_of):
    other = copy.deepcopy(trained.model)
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    with torch.no_grad():
        other.classifier[4].weight.copy_(other.classifier[4].weight[order])
        other.classifier[4].bias.copy_(other.classifier[4].bias[order])
    failed = _failed(certificate_of(OfAnother(exporter, other)))
    assert {"parity/class_agreement", "accuracy_drop", "parity/logits/max_abs_error"} <= failed


def test_a_quantizer_that_did_nothing_fails(trained, certificate_of):
    class DoesNothing(OnnxInt8Static):
        def export(self, model, context, into):
            shutil.copyfile(fp32_graph(model, context), into / "model.onnx")

    failed = _failed(certificate_of(DoesNothing()))
    assert "quantized_nodes" in failed
    assert "parity/logits/max_abs_error" not in failed  # it is the model: only counting finds it out


def test_a_quantizer_that_did_one_node_of_four_fails(certificate_of):
    def undo_all_but_one(graph):
        heavy = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm")]
        graph.graph.node.extend(onnx.helper.make_node("Identity", [node.input[0]], [f"{node.name}_bypass"]) for node in heavy[1:])
        for node in heavy[1:]:
            node.input[0] = f"{node.name}_bypass"
        _sort(graph)

    failed = _failed(certificate_of(Planted(OnnxInt8Static(), _edit_graph(undo_all_but_one))))
    assert failed == {"quantized_nodes"}


def _sort(graph):
    """Topological order, which ONNX demands."""
    known = {v.name for v in graph.graph.input} | {t.name for t in graph.graph.initializer} | {""}
    nodes, ordered = list(graph.graph.node), []
    while nodes:
        ready = next(node for node in nodes if set(node.input) <= known)
        nodes.remove(ready)
        known |= set(ready.output)
        ordered.append(copy.deepcopy(ready))
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)


@pytest.mark.parametrize("exporter", [OnnxFp32(), TorchScriptFp32()], ids=lambda e: e.name)
def test_nan_in_one_row_fails(exporter, trained, measured, certificate_of):
    reference, _ = measured
    marked = float(reference.rows.inputs["image"][200].sum())

    class NanForOneRow(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            near = (image.sum(dim=(1, 2, 3)) - marked).abs() < 1e-3
            return torch.where(near[:, None], torch.full((), float("nan")), self.model(image))

    failed = _failed(certificate_of(OfAnother(exporter, NanForOneRow(trained.model).eval())))
    assert {"finite/logits/num_not_finite", "parity/logits/max_abs_error", "parity/logits/mean_abs_error"} <= failed


def test_nan_that_the_model_itself_answers_fails(trained, tmp_path):
    broken = TrainedSource(
        model=copy.deepcopy(trained.model), recipe=trained.recipe, weights_sha256="0" * 64, data_sha256=trained.data_sha256
    )
    with torch.no_grad():
        broken.model.classifier[4].bias[3] = float("nan")
    reference, context = stage.measure_eager(broken, broken.recipe.export, scratch=tmp_path)
    result = stage.export_variant(
        OnnxFp32(), broken, version=VERSION, config=broken.recipe.export, reference=reference, context=context, directory=tmp_path / "v"
    )
    assert "finite/logits/num_not_finite_eager" in _failed(result.certificate)
    assert result.tolerance["logits"]["atol"] == 0.0


def test_a_frozen_batch_dimension_fails_onnx(certificate_of):
    def freeze(graph):
        for value in [*graph.graph.input, *graph.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = 2

    failed = _failed(certificate_of(Planted(OnnxFp32(), _edit_graph(freeze))))
    assert {"batch/1/max_relative_error", "batch/7/max_relative_error", "batch/32/max_relative_error"} <= failed
    assert "batch/2/max_relative_error" not in failed


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python integer")
def test_a_frozen_batch_dimension_fails_torchscript(trained, certificate_of):
    class Frozen(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model(image).reshape(int(image.shape[0]), 10)  # tracing makes it the example's four

    failed = _failed(certificate_of(OfAnother(TorchScriptFp32(), Frozen(trained.model).eval())))
    assert {f"batch/{size}/max_relative_error" for size in (1, 2, 7)} <= failed


def test_answers_that_depend_on_the_other_rows_fail(trained, tmp_path):
    class CentresTheBatch(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model(image - image.mean(dim=0))

    leaky = TrainedSource(
        model=CentresTheBatch(trained.model).eval(), recipe=trained.recipe, weights_sha256="0" * 64, data_sha256=trained.data_sha256
    )
    reference, context = stage.measure_eager(leaky, leaky.recipe.export, scratch=tmp_path)
    result = stage.export_variant(
        OnnxFp32(), leaky, version=VERSION, config=leaky.recipe.export, reference=reference, context=context, directory=tmp_path / "v"
    )
    assert "rows/logits/alone_max_abs_error" in _failed(result.certificate)


def test_rows_that_change_places_fail(certificate_of):
    """Reversed answers: right values, wrong rows."""

    def reverse(graph):
        graph.graph.output[0].name = "logits"
        last = next(node for node in graph.graph.node if "logits" in node.output)
        last.output[0] = "forward"
        starts, ends, axes, steps = (
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("starts", -1), ("ends", np.iinfo(np.int64).min), ("axes", 0), ("steps", -1))
        )
        graph.graph.initializer.extend([starts, ends, axes, steps])
        graph.graph.node.append(onnx.helper.make_node("Slice", ["forward", "starts", "ends", "axes", "steps"], ["logits"]))

    failed = _failed(certificate_of(Planted(OnnxFp32(), _edit_graph(reverse))))
    assert {"rows/logits/alone_max_abs_error", "parity/logits/max_abs_error"} <= failed
    assert "batch/1/max_relative_error" not in failed


def test_a_wrong_shape_fails(certificate_of):
    def one_class_more(graph):
        _edit_tensor(graph, "model.classifier.4.weight", lambda array: np.vstack([array, array[:1]]))
        _edit_tensor(graph, "model.classifier.4.bias", lambda array: np.append(array, array[:1]))
        del graph.graph.output[0].type.tensor_type.shape.dim[1:]
        graph.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 11
        del graph.graph.value_info[:]

    assert "signature/mismatches" in _failed(certificate_of(Planted(OnnxFp32(), _edit_graph(one_class_more))))


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_silent_fall_back_to_another_provider_fails(certificate_of, monkeypatch):
    def on_a_gpu(directory, signature):
        return OnnxRunner(directory / "model.onnx", signature, wanted_provider="CUDAExecutionProvider")

    monkeypatch.setattr("training.export.certify.open_variant", on_a_gpu)
    assert _failed(certificate_of(OnnxFp32())) == {"provider", "provider/num_fallen_back"}


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda e: e.name)
def test_a_truncated_file_fails(exporter, certificate_of):
    def truncate(directory):
        (model,) = directory.glob("model.*")
        model.write_bytes(model.read_bytes()[:-500])

    failed = _failed(certificate_of(Planted(exporter, truncate)))
    assert failed & {"loads", "export"}


def test_an_exporter_that_raises_gives_a_failing_certificate_that_says_so(certificate_of):
    class Raises(OnnxFp32):
        def export(self, model, context, into):
            raise RuntimeError("operator grid_sampler_5d is not supported")

    certificate = certificate_of(Raises())
    assert certificate.failures == ("export 0 != 1 (RuntimeError: operator grid_sampler_5d is not supported)",)


def test_an_exporter_that_writes_nothing_fails(certificate_of):
    class WritesNothing(OnnxFp32):
        def export(self, model, context, into):
            pass

        def inspect(self, directory, model, context):
            return super().inspect(fp32_graph(model, context).parent, model, context)

    assert _failed(certificate_of(WritesNothing())) == {"loads"}
