"""Half precision, 8 bits in libtorch, and ahead-of-time compilation: made, looked into, and certified on the CPU as far as one can."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec
from training.export.certificate.certify import certify
from training.export.runners import OnnxRunner, open_variant
from training.export.stage import measure_eager
from training.export.variants.aoti import AotInductor
from training.export.variants.onnx_fp16 import OnnxFp16
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.torchscript_fp16 import TorchScriptFp16
from training.export.variants.torchscript_fp32 import TorchScriptFp32
from training.export.variants.torchscript_int8 import TorchScriptInt8

has_no_compiler = shutil.which("g++") is None


@pytest.fixture
def measured(trained, tmp_path):
    (tmp_path / "scratch").mkdir()
    return measure_eager(trained, trained.recipe.export, scratch=tmp_path / "scratch")


def _made(exporter, trained, context, tmp_path):
    directory = tmp_path / exporter.name
    directory.mkdir()
    exporter.export(trained.model, context, directory)
    return directory


def _certificate(exporter, directory, trained, reference, context):
    """On the CPU, whatever the target."""
    return certify(
        directory,
        version=ModelVersion("digits", 1),
        source_sha256="",
        variant=exporter.name,
        reference=reference,
        limits=exporter.limits,
        accuracy_drop=0.05,
        inspection=exporter.inspect(directory, trained.model, context),
    ).certificate


def _failed(certificate):
    return {check.name for check in certificate.checks if not check.passed}


@pytest.mark.parametrize("exporter", [OnnxFp16(), TorchScriptFp16(), TorchScriptInt8()], ids=lambda e: e.name)
def test_a_variant_passes_and_is_not_float32(exporter, trained, measured, tmp_path):
    reference, context = measured
    certificate = _certificate(exporter, _made(exporter, trained, context, tmp_path), trained, reference, context)
    assert certificate.passed, certificate.failures
    (error,) = (check.value for check in certificate.checks if check.name == "parity/logits/max_abs_error")
    assert error > 1e-4  # float32 is off by 2e-6: this is another arithmetic


@pytest.mark.parametrize("exporter", [OnnxFp16(), TorchScriptFp16()], ids=lambda e: e.name)
def test_half_precision_halves_the_file_and_fits_gpus_only(exporter, trained, measured, tmp_path):
    _, context = measured
    assert "GPU" in str(exporter.unfit(trained.model, context))
    assert exporter.unfit(trained.model, dataclasses.replace(context, target="cuda")) is None
    single = OnnxFp32() if exporter.name.startswith("onnx") else TorchScriptFp32()
    half, full = (
        sum(file.stat().st_size for file in _made(made, trained, context, tmp_path).iterdir() if file.name.startswith("model"))
        for made in (exporter, single)
    )
    assert half < 0.8 * full


def test_a_half_precision_graph_keeps_float32_at_its_border(trained, measured, tmp_path):
    _, context = measured
    graph = onnx.load(_made(OnnxFp16(), trained, context, tmp_path) / "model.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def _edit(path, change):
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor).copy()
            change(array)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            break
    onnx.save(graph, path)


def test_one_changed_half_weight_is_found(trained, measured, tmp_path):
    reference, context = measured
    directory = _made(OnnxFp16(), trained, context, tmp_path)

    def next_value(array):
        array.flat[0] = np.nextafter(array.flat[0], np.float16(100))

    _edit(directory / "model.onnx", next_value)
    assert _failed(_certificate(OnnxFp16(), directory, trained, reference, context)) == {"precision/num_wrongly_rounded"}


def test_a_converter_that_did_nothing_fails(trained, measured, tmp_path):
    reference, context = measured
    for exporter, single in ((OnnxFp16(), OnnxFp32()), (TorchScriptFp16(), TorchScriptFp32()), (TorchScriptInt8(), TorchScriptFp32())):
        directory = tmp_path / exporter.name
        directory.mkdir()
        single.export(trained.model, context, directory)
        failed = _failed(_certificate(exporter, directory, trained, reference, context))
        assert failed & {"precision/num_float16_weights", "quantized/num_layers"}, exporter.name


def test_a_weight_beyond_float16_is_named(measured, tmp_path):
    class Loud(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[70000.0, 1.0]]))

        def forward(self, image):
            return torch.nn.functional.linear(image, self.weight)

    from training.interface import infer_signature

    model, example = Loud().eval(), {"image": torch.rand(4, 2)}
    _, context = measured
    context = dataclasses.replace(context, example=example, signature=infer_signature(example, {"logits": model(example["image"])}))
    directory = tmp_path / "loud"
    directory.mkdir()
    OnnxFp16().export(model, context, directory)
    failed = {check.name for check in OnnxFp16().inspect(directory, model, context).checks if not check.passed}
    assert "precision/num_beyond_float16" in failed


def test_the_model_itself_is_not_changed(trained, measured, tmp_path):
    _, context = measured
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    kinds = [type(module) for module in trained.model.modules()]
    for exporter in (TorchScriptFp16(), TorchScriptInt8()):
        _made(exporter, trained, context, tmp_path)
    after = trained.model.state_dict()
    assert [type(module) for module in trained.model.modules()] == kinds
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())


def test_eight_bits_need_a_layer_that_can_have_them(measured):
    _, context = measured
    assert "no Linear" in str(TorchScriptInt8().unfit(torch.nn.Conv2d(1, 1, 1), context))
    assert TorchScriptInt8().unfit(torch.nn.GRU(2, 2), context) is None
    assert "CPU" in str(TorchScriptInt8().unfit(torch.nn.Linear(1, 1), dataclasses.replace(context, target="cuda")))


def test_no_compiler_no_compiled_variant(measured, monkeypatch):
    from torch._inductor import cpp_builder

    _, context = measured

    def none_found():
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    assert "no C++ compiler" in str(AotInductor().unfit(torch.nn.Linear(1, 1), context))
    assert "CPU only" in str(AotInductor().unfit(torch.nn.Linear(1, 1), dataclasses.replace(context, target="cuda")))


@pytest.mark.skipif(has_no_compiler, reason="AOTInductor needs a C++ compiler, and there is no g++ here")
def test_a_compiled_model_passes_and_says_what_it_was_compiled_for(trained, measured, tmp_path):
    reference, context = measured
    directory = _made(AotInductor(), trained, context, tmp_path)
    certificate = _certificate(AotInductor(), directory, trained, reference, context)
    assert certificate.passed, certificate.failures
    assert certificate.facts["machine"].startswith("linux ")
    assert certificate.facts["compile_s"] > 0
    with zipfile.ZipFile(directory / "model.pt2") as package:
        (name,) = (name for name in package.namelist() if name.endswith(".wrapper_metadata.json"))
        assert json.loads(package.read(name))["AOTI_CPU_ISA"] == certificate.facts["instruction_set"]

    # A package without its library is found, and is not loaded as something else.
    broken = tmp_path / "broken"
    broken.mkdir()
    with zipfile.ZipFile(directory / "model.pt2") as package, zipfile.ZipFile(broken / "model.pt2", "w") as copy:
        for entry in package.infolist():
            if not entry.filename.endswith((".so", ".cpp")):
                copy.writestr(entry.filename, package.read(entry))
    assert {"loads", "compiled/num_libraries"} <= _failed(_certificate(AotInductor(), broken, trained, reference, context))


def test_tensors_that_are_bound_to_a_device_give_the_same_answer(trained, measured, tmp_path):
    reference, context = measured
    directory = _made(OnnxFp32(), trained, context, tmp_path)
    rows = reference.rows.take(slice(0, 7))
    bound = OnnxRunner(directory / "model.onnx", reference.signature, device="cpu").run(rows)
    np.testing.assert_array_equal(bound["logits"], open_variant(directory, reference.signature).run(rows)["logits"])


class Tokens(torch.nn.Module):
    """Token ids and their mask of any length, and a second output."""

    def __init__(self, *, recurrent):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.recurrent = torch.nn.LSTM(16, 16, batch_first=True) if recurrent else None
        self.attention = None if recurrent else torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, ids, mask):
        states = self.embedding(ids)
        states = self.attention(states) if self.recurrent is None else self.recurrent(states)[0]
        weight = mask.unsqueeze(-1).to(states.dtype)
        return {"logits": self.head((states * weight).sum(1) / weight.sum(1)), "states": states}


def _tokens(num_rows, length):
    ids = np.random.default_rng(num_rows).integers(0, 50, (num_rows, length))
    return {"ids": ids, "mask": np.ones_like(ids)}


@pytest.mark.parametrize(
    ("exporter", "limit"),
    [
        pytest.param(TorchScriptInt8(), 0.05, id="torchscript-int8"),
        pytest.param(TorchScriptFp16(), 0.01, id="torchscript-fp16"),
        pytest.param(
            AotInductor(),
            1e-5,
            id="aoti",
            marks=pytest.mark.skipif(has_no_compiler, reason="it needs a C++ compiler, and there is no g++"),
        ),
    ],
)
def test_free_lengths_integers_two_inputs_and_two_outputs(exporter, limit, measured, tmp_path):
    torch.manual_seed(0)
    model = Tokens(recurrent=exporter.name != "aoti").eval()  # torch.export fixes the length of a recurrent layer
    signature = Signature(
        inputs=(TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))),
        outputs=(TensorSpec("logits", "FP32", (-1, 3)), TensorSpec("states", "FP32", (-1, -1, 16))),
    )
    example = {name: torch.from_numpy(array) for name, array in _tokens(4, 12).items()}
    context = dataclasses.replace(measured[1], signature=signature, example=example)
    directory = tmp_path / "recurrent"
    directory.mkdir()
    exporter.export(model, context, directory)
    assert all(check.passed for check in exporter.inspect(directory, model, context).checks)
    runner = open_variant(directory, signature)
    for num_rows, length in ((1, 12), (2, 5), (7, 1), (32, 20)):
        inputs = _tokens(num_rows, length)
        answers = runner.run(inputs)
        with torch.inference_mode():
            expected = model(*(torch.from_numpy(array) for array in inputs.values()))
        for name, tensor in expected.items():
            assert answers[name].dtype == np.float32
            np.testing.assert_allclose(answers[name], tensor.numpy(), atol=limit, err_msg=f"{name} of {num_rows} rows of {length}")
