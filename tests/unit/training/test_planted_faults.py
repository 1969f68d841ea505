"""P25, the half of the export: no planted fault gets a passing certificate, and the check that must catch it does.

Faults that are another model (a flipped weight, dropout left on) are planted into every variant that there is; faults of a file's
form into every variant of that form. Each row of the table is one fault with the checks that must all fail.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from support.planted import OfAnother, Planted, edit_graph, edit_tensor, every_variant, failed, sort_nodes
from training.data.batches import Rows
from training.export import stage
from training.export.catalog import EXPORTERS
from training.export.exporter import FP32_LIMITS
from training.export.onnx_graph import fp32_graph
from training.export.runners import OnnxRunner
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.onnx_int8_static import OnnxInt8Static
from training.export.variants.torchscript_fp32 import TorchScriptFp32
from training.source.trained import TrainedSource

pytestmark = pytest.mark.usefixtures("short_latency")

PARITY = "parity/logits/max_abs_error"
MEAN = "parity/logits/mean_abs_error"
REPEATED = "rows/logits/repeated_max_abs_error"
EVERY = pytest.mark.parametrize("exporter", every_variant())
ONNX = [exporter for exporter in EXPORTERS if exporter.name.startswith("onnx-")]
TORCHSCRIPT = [exporter for exporter in EXPORTERS if exporter.name.startswith("torchscript-")]
REDUCED = [exporter for exporter in EXPORTERS if not exporter.name.endswith("-fp32") and exporter.name != "aoti"]


def ids(exporter) -> str:
    return exporter.name


class Wrapped(torch.nn.Module):
    """The model with something done to it."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.eval()


class DropoutLeftOn(Wrapped):
    def forward(self, image):
        return torch.nn.functional.dropout(self.model(image), p=0.1, training=True)


class CastOutput(Wrapped):
    def forward(self, image):
        return self.model(image).double()


class NanForOneRow(Wrapped):
    def __init__(self, model, marked: float):
        super().__init__(model)
        self.marked = marked

    def forward(self, image):
        near = (image.sum(dim=(1, 2, 3)) - self.marked).abs() < 1e-3
        return torch.where(near[:, None], torch.full((), float("nan")), self.model(image))


class ConstantAnswer(Wrapped):
    def forward(self, image):
        return self.model(image) * 0.0


class CentresTheBatch(Wrapped):
    def forward(self, image):
        return self.model(image - image.mean(dim=0))


class Remembers(Wrapped):
    """Adds a little more to its answers with each call."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image):
        self.calls += 1.0
        return self.model(image) * (1.0 + 0.01 * self.calls)


def with_flipped_weight(model):
    """The largest weight of the first layer with its other sign."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = other.features[0].weight.view(-1)
        weight[weight.abs().argmax()] *= -1
    return other


def with_permuted_labels(model):
    other = copy.deepcopy(model)
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    with torch.no_grad():
        other.classifier[4].weight.copy_(other.classifier[4].weight[order])
        other.classifier[4].bias.copy_(other.classifier[4].bias[order])
    return other


@dataclasses.dataclass(frozen=True)
class Fault:
    """Another model in the place of the certified one, and the checks that must fail for every variant (export itself may refuse it)."""

    name: str
    model: Callable
    caught_by: frozenset[str]


# The table: each fault in every variant.
FAULTS = (
    Fault("permuted labels", with_permuted_labels, frozenset({PARITY, "parity/class_agreement", "accuracy_drop"})),
    Fault("dropout left on", DropoutLeftOn, frozenset({REPEATED, MEAN})),
    Fault("NaN in one row", lambda model: NanForOneRow(model, MARKED), frozenset({"finite/logits/num_not_finite", PARITY, MEAN})),
    Fault("output of another dtype", CastOutput, frozenset({"signature/mismatches"})),
    Fault("a constant answer", ConstantAnswer, frozenset({PARITY, MEAN, "parity/class_agreement", "accuracy_drop"})),
    Fault("answers that depend on the other rows", CentresTheBatch, frozenset({"rows/logits/alone_max_abs_error", MEAN})),
)
MARKED = -1.0  # the sum of the row that is marked; the fixture sets it


@pytest.fixture(autouse=True)
def marked_row(measured, monkeypatch):
    monkeypatch.setattr(f"{__name__}.MARKED", float(measured[0].rows.inputs["image"][200].sum()))


@EVERY
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_the_model_is_caught_in_every_variant(fault, exporter, trained, certificate_of):
    found = failed(certificate_of(OfAnother(exporter, fault.model(trained.model).eval())))
    assert fault.caught_by <= found or "export" in found, found


@EVERY
def test_one_flipped_weight_is_caught_in_every_variant(exporter, trained, certificate_of):
    found = failed(certificate_of(OfAnother(exporter, with_flipped_weight(trained.model))))
    assert found & {PARITY, MEAN, "weights/max_error_steps"}, found
    if exporter.limits == FP32_LIMITS:
        assert PARITY in found


@pytest.mark.parametrize("name", ["1.weight", "1.bias", "4.weight", "4.bias"])
def test_one_weight_of_any_layer_with_its_sign_flipped_fails_onnx_fp32(name, certificate_of):
    def flip(array):
        array.flat[np.abs(array).argmax()] *= -1
        return array

    flipped = edit_graph(lambda graph: edit_tensor(graph, f"model.classifier.{name}", flip))
    assert PARITY in failed(certificate_of(Planted(OnnxFp32(), flipped)))


@pytest.mark.parametrize("seed", range(5))
def test_one_flipped_bit_in_a_random_int8_weight_fails_onnx_int8(seed, certificate_of):
    rng = np.random.default_rng(seed)

    def damage(graph):
        quantized = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8 and np.prod(t.dims) > 64]
        chosen = quantized[rng.integers(len(quantized))]

        def flip(array):
            array.reshape(-1).view(np.uint8)[rng.integers(array.size)] ^= 1 << int(rng.integers(1, 8))
            return array

        edit_tensor(graph, chosen.name, flip)

    assert "weights/max_error_steps" in failed(certificate_of(Planted(OnnxInt8Static(), edit_graph(damage))))


@pytest.mark.parametrize("exporter", TORCHSCRIPT, ids=ids)
def test_a_model_that_keeps_state_between_calls_fails(exporter, trained, certificate_of):
    found = failed(certificate_of(OfAnother(exporter, Remembers(trained.model))))
    assert REPEATED in found or "export" in found, found


def test_a_state_too_small_for_parity_is_seen_by_asking_again(trained, measured, certificate_of, monkeypatch):
    """A drift of a hundred-thousandth a call: every single answer is within the limits of int8, the hundredth call is not the first."""

    class Drifts(TorchScriptFp32):
        limits = OnnxInt8Static.limits

    class Slowly(Remembers):
        def forward(self, image):
            self.calls += 1.0
            return self.model(image) * (1.0 + 2e-4 * self.calls)

    assert failed(certificate_of(OfAnother(Drifts(), Slowly(trained.model)))) == {REPEATED}


@pytest.mark.parametrize("exporter", REDUCED, ids=ids)
def test_a_quantizer_or_converter_that_did_nothing_fails(exporter, trained, measured, certificate_of):
    """The float32 files under another name: the very model, so that only looking into the files finds it out."""
    original = TorchScriptFp32() if exporter.name.startswith("torchscript-") else OnnxFp32()

    class DidNothing:
        name, limits, unfit = exporter.name, exporter.limits, staticmethod(exporter.unfit)

        def export(self, model, context, into):
            original.export(model, context, into)

        def inspect(self, directory, model, context):
            return exporter.inspect(directory, model, context)

    found = failed(certificate_of(DidNothing()))
    assert not {name for name in found if name.startswith(("parity", "batch", "rows"))}, found


def test_a_quantizer_that_did_one_node_of_four_fails(certificate_of):
    def undo_all_but_one(graph):
        heavy = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm")]
        graph.graph.node.extend(onnx.helper.make_node("Identity", [node.input[0]], [f"{node.name}_bypass"]) for node in heavy[1:])
        for node in heavy[1:]:
            node.input[0] = f"{node.name}_bypass"
        sort_nodes(graph)

    assert failed(certificate_of(Planted(OnnxInt8Static(), edit_graph(undo_all_but_one)))) == {"quantized_nodes"}


def _constants(context):
    images = np.full_like(context.calibration.inputs["image"], 0.5)
    return Rows(inputs={"image": images}, target=context.calibration.target)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy may remark on constants; outside of tests that stops nobody
def test_a_calibration_set_of_constants_fails(trained, measured, certificate_of):
    _, context = measured
    found = failed(certificate_of(OfAnother(OnnxInt8Static(), trained.model, calibration=_constants(context))))
    assert found & {PARITY, MEAN, "parity/class_agreement"}, found


def test_a_quantizer_that_takes_constants_for_data_fails(measured, certificate_of):
    """ONNX Runtime's own, which measures ranges on whatever it is given and reports success."""
    _, context = measured
    rows = _constants(context)

    class Reader(CalibrationDataReader):
        batches = iter([rows.take(slice(0, 32))])

        def get_next(self):
            return next(self.batches, None)

    class Stock(OnnxInt8Static):
        def export(self, model, context, into):
            quant_pre_process(fp32_graph(model, context), into / "prepared.onnx")
            quantize_static(into / "prepared.onnx", into / "model.onnx", Reader(), per_channel=True, reduce_range=True)
            (into / "prepared.onnx").unlink()

    found = failed(certificate_of(Stock()))
    assert {MEAN, "parity/class_agreement", "accuracy_drop"} <= found, found


@pytest.mark.parametrize("exporter", ONNX, ids=ids)
def test_a_frozen_batch_dimension_fails_onnx(exporter, certificate_of):
    def freeze(graph):
        for value in [*graph.graph.input, *graph.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = 2

    found = failed(certificate_of(Planted(exporter, edit_graph(freeze))))
    assert {f"batch/{size}/max_relative_error" for size in (1, 7, 32)} <= found
    assert "batch/2/max_relative_error" not in found


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python integer")
@pytest.mark.parametrize("exporter", TORCHSCRIPT, ids=ids)
def test_a_frozen_batch_dimension_fails_torchscript(exporter, trained, certificate_of):
    class Frozen(Wrapped):
        def forward(self, image):
            return self.model(image).reshape(int(image.shape[0]), 10)  # tracing makes it the example's four

    found = failed(certificate_of(OfAnother(exporter, Frozen(trained.model))))
    assert {f"batch/{size}/max_relative_error" for size in (1, 2, 7)} <= found


def test_a_variant_that_is_wrong_at_one_batch_size_only_fails(certificate_of):
    """Right alone, in 32 rows and in the rest of the held-out rows; a hundredth off in batches of seven."""

    def off_in_sevens(graph):
        next(node for node in graph.graph.node if "logits" in node.output).output[0] = "forward"
        constants = {"seven": np.array([7], np.int64), "hundredth": np.array([0.01], np.float32), "one": np.array([1.0], np.float32)}
        graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        graph.graph.node.extend(
            [
                onnx.helper.make_node("Shape", ["forward"], ["rows"], start=0, end=1),
                onnx.helper.make_node("Equal", ["rows", "seven"], ["is_seven"]),
                onnx.helper.make_node("Cast", ["is_seven"], ["counted"], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node("Mul", ["counted", "hundredth"], ["more"]),
                onnx.helper.make_node("Add", ["more", "one"], ["factor"]),
                onnx.helper.make_node("Mul", ["forward", "factor"], ["logits"]),
            ]
        )

    assert failed(certificate_of(Planted(OnnxFp32(), edit_graph(off_in_sevens)))) == {"batch/7/max_relative_error"}


def test_rows_that_change_places_fail(certificate_of):
    """Reversed answers: right values, wrong rows."""

    def reverse(graph):
        last = next(node for node in graph.graph.node if "logits" in node.output)
        last.output[0] = "forward"
        starts, ends, axes, steps = (
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("starts", -1), ("ends", np.iinfo(np.int64).min), ("axes", 0), ("steps", -1))
        )
        graph.graph.initializer.extend([starts, ends, axes, steps])
        graph.graph.node.append(onnx.helper.make_node("Slice", ["forward", "starts", "ends", "axes", "steps"], ["logits"]))

    found = failed(certificate_of(Planted(OnnxFp32(), edit_graph(reverse))))
    assert {"rows/logits/alone_max_abs_error", PARITY} <= found
    assert "batch/1/max_relative_error" not in found


def test_rows_that_depend_on_their_place_in_the_batch_fail(certificate_of):
    """A model that is itself so is no better: alone and batched must agree, whatever the reference says."""

    def add_place(graph):
        last = next(node for node in graph.graph.node if "logits" in node.output)
        last.output[0] = "forward"
        nodes = [
            onnx.helper.make_node("Shape", ["forward"], ["shape"]),
            onnx.helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=onnx.helper.make_tensor("v", 1, [1], [1e-3])),
            onnx.helper.make_node("CumSum", ["ones", "axis"], ["places"]),
            onnx.helper.make_node("Add", ["forward", "places"], ["logits"]),
        ]
        graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "axis"))
        graph.graph.node.extend(nodes)

    found = failed(certificate_of(Planted(OnnxFp32(), edit_graph(add_place))))
    assert {"rows/logits/alone_max_abs_error", "rows/logits/permuted_max_abs_error"} <= found


def test_a_model_that_is_itself_dependent_on_other_rows_fails(trained, measured_of, tmp_path):
    leaky = TrainedSource(
        model=CentresTheBatch(trained.model), recipe=trained.recipe, weights_sha256="0" * 64, data_sha256=trained.data_sha256
    )
    (tmp_path / "scratch").mkdir()
    reference, context = stage.measure_eager(leaky, leaky.recipe.export, scratch=tmp_path / "scratch")
    found = failed(measured_of(OnnxFp32(), source=leaky, reference=reference, context=context).certificate)
    assert "rows/logits/alone_max_abs_error" in found


def test_a_wrong_shape_fails(certificate_of):
    def one_class_more(graph):
        edit_tensor(graph, "model.classifier.4.weight", lambda array: np.vstack([array, array[:1]]))
        edit_tensor(graph, "model.classifier.4.bias", lambda array: np.append(array, array[:1]))
        del graph.graph.output[0].type.tensor_type.shape.dim[1:]
        graph.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 11
        del graph.graph.value_info[:]

    assert "signature/mismatches" in failed(certificate_of(Planted(OnnxFp32(), edit_graph(one_class_more))))


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_silent_fall_back_to_another_provider_fails(certificate_of, monkeypatch):
    def on_a_gpu(directory, signature, **target):
        return OnnxRunner(directory / "model.onnx", signature, wanted_provider="CUDAExecutionProvider")

    monkeypatch.setattr("training.export.certificate.certify.open_variant", on_a_gpu)
    assert failed(certificate_of(OnnxFp32())) == {"provider", "provider/num_fallen_back"}


class Breaks:
    """A runner of the real engine that breaks after some calls, or cannot say where its nodes run."""

    provider = wanted_provider = "CPUExecutionProvider"

    def __init__(self, runner, *, after: int | None = None):
        self.runner, self.after, self.calls = runner, after, 0

    def run(self, inputs):
        self.calls += 1
        if self.after is not None and self.calls > self.after:
            raise RuntimeError("out of memory")
        return self.runner.run(inputs)

    def placement(self):
        if self.after is None:
            raise RuntimeError("no such graph")
        return self.runner.placement()


@pytest.mark.parametrize(
    ("after", "caught_by"),
    [
        (None, {"provider/placement"}),
        (0, {"batch/1/max_relative_error", "held_out/runs"}),
        (64 + 32 + 9 + 2 + 1 + 12, {"rows/runs", "latency/runs", "rows/repeats"}),  # first call, batches, held-out rows; no more
        (64 + 32 + 9 + 2 + 1 + 12 + 34, {"latency/runs", "rows/repeats"}),  # and the rows alone and permuted
    ],
    ids=["placement", "at once", "after the held-out rows", "after the rows alone"],
)
def test_a_runtime_that_breaks_is_a_failed_check_wherever_it_breaks(after, caught_by, certificate_of, monkeypatch):
    def opened(directory, signature, **target):
        return Breaks(OnnxRunner(directory / "model.onnx", signature), after=after)

    monkeypatch.setattr("training.export.certificate.certify.open_variant", opened)
    found = failed(certificate_of(OnnxFp32()))
    assert caught_by <= found
    if after:
        assert found == caught_by


@EVERY
def test_a_truncated_file_fails(exporter, certificate_of):
    def truncate(directory):
        (model,) = directory.glob("model.*")
        model.write_bytes(model.read_bytes()[:-500])

    assert failed(certificate_of(Planted(exporter, truncate))) & {"loads", "export"}


@pytest.mark.parametrize("exporter", ONNX, ids=ids)
@pytest.mark.parametrize("fault", ["truncated", "missing", "zeroed"])
def test_damaged_external_data_fails(exporter, fault, certificate_of):
    def damage(directory: Path):
        graph = onnx.load(directory / "model.onnx")
        onnx.save(graph, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
        data = directory / "model.onnx.data"
        if fault == "missing":
            data.unlink()
        elif fault == "zeroed":
            data.write_bytes(bytes(data.stat().st_size))
        else:
            data.write_bytes(data.read_bytes()[:-500])

    found = failed(certificate_of(Planted(exporter, damage)))
    assert found & ({MEAN, "loads"} if fault == "zeroed" else {"loads", "export"}), found  # a shape of zeros does not even load
