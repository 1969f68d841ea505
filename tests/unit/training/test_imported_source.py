"""Imported models: opened again as what they were, with rows to measure them on."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from registry.bundle import write_manifest
from registry.errors import Corrupt, UsageError
from registry.names import ModelVersion
from training.export import stage
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.torchscript_fp32 import TorchScriptFp32
from training.recipe import ComponentConfig, ExportConfig
from training.source.imported import ImportedModel, ImportedSource, Kind, model_file, write_imported
from training.source.opening import open_source

ROWS = 80


class Ragged(torch.nn.Module):
    """Integer tokens [n, length] and a float per row; the second output is as long as the tokens."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.embed = torch.nn.Embedding(11, width)
        self.head = torch.nn.Linear(width + 1, 3)

    def forward(self, tokens, weight):
        embedded = self.embed(tokens)
        return self.head(torch.cat([embedded.mean(1), weight], dim=1)), embedded.sum(-1)


@pytest.fixture(scope="module")
def ragged() -> Ragged:
    torch.manual_seed(0)
    return Ragged().eval()


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    return {"tokens": rng.integers(0, 11, (ROWS, 8)), "weight": rng.normal(size=(ROWS, 1)).astype(np.float32)}


CONFIG = ExportConfig(variants=("onnx-fp32",), outputs=("logits", "sums"), dynamic={"tokens": (1,)})


def _write(directory, ragged, sample, kind: Kind, labels=None):
    directory.mkdir()
    file = model_file(directory, kind)
    file.parent.mkdir(exist_ok=True)
    example = tuple(torch.from_numpy(array[:4]) for array in sample.values())
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "onnx":
            program = torch.onnx.export(
                ragged,
                example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(sample),
                output_names=["logits", "sums"],
                verbose=False,
            )
            onnx.save(program.model_proto, file)
        elif kind == "torchscript":
            torch.jit.save(torch.jit.script(ragged), str(file))
        elif kind == "program":
            program = torch.export.export(ragged, example, dynamic_shapes=shapes)
            program.example_inputs = None
            torch.export.save(program, file)
        else:
            safetensors.torch.save_model(ragged, str(file))
    model = ComponentConfig(class_path=f"{Ragged.__module__}.Ragged", init_args={"width": 6}) if kind == "module" else None
    imported = ImportedModel(kind=kind, task="classification", export=CONFIG, model=model, origin={"file": file.name})
    write_imported(directory, imported, sample=sample, labels=labels)
    return write_manifest(directory)


KINDS: tuple[Kind, ...] = ("onnx", "torchscript", "program", "module")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_of_each_kind_is_exported_with_a_free_length(kind, ragged, sample, tmp_path):
    source = open_source(tmp_path / "source", expected_sha256=_write(tmp_path / "source", ragged, sample, kind))
    (tmp_path / "scratch").mkdir()
    reference, context = stage.measure_eager(source, source.export, scratch=tmp_path / "scratch")
    assert [str(spec) for spec in reference.signature.inputs] == ["tokens: INT64[-1, -1]", "weight: FP32[-1, 1]"]
    assert [str(spec) for spec in reference.signature.outputs] == ["logits: FP32[-1, 3]", "sums: FP32[-1, -1]"]
    expected = ragged(*(torch.from_numpy(array) for array in reference.rows.inputs.values()))[0].detach().numpy()
    np.testing.assert_allclose(reference.outputs["logits"], expected, atol=1e-5)
    for exporter in (OnnxFp32(), TorchScriptFp32()):
        if exporter.unfit(source.model, context) is not None:
            assert kind in ("onnx", "program")
            assert exporter.name == "torchscript-fp32"
            continue
        certificate = stage.export_variant(
            exporter,
            source,
            version=ModelVersion("ragged", 1),
            config=source.export,
            reference=reference,
            context=context,
            directory=tmp_path / exporter.name,
        ).certificate
        assert certificate.passed, certificate.failures


def test_rows_are_split_between_measuring_and_calibration(ragged, sample, tmp_path):
    source = open_source(tmp_path / "s", expected_sha256=_write(tmp_path / "s", ragged, sample, "module"))
    rows = source.evaluation(CONFIG)
    assert not rows.labelled
    assert (len(rows.held_out), len(rows.calibration)) == (40, 40)
    assert not np.array_equal(rows.held_out.inputs["weight"], rows.calibration.inputs["weight"])
    own = ragged(*(torch.from_numpy(array) for array in rows.held_out.inputs.values()))[0].argmax(-1).numpy()
    np.testing.assert_array_equal(rows.held_out.target, own)


def test_labels_are_used_where_there_are_any(ragged, sample, tmp_path):
    labels = np.arange(ROWS) % 3
    source = open_source(tmp_path / "s", expected_sha256=_write(tmp_path / "s", ragged, sample, "module", labels))
    rows = source.evaluation(CONFIG)
    assert rows.labelled
    np.testing.assert_array_equal(rows.held_out.target, labels[:40])


def test_a_few_rows_are_repeated_without_labels_and_refused_with_them(ragged, sample, tmp_path):
    few = {name: array[:3] for name, array in sample.items()}
    source = open_source(tmp_path / "s", expected_sha256=_write(tmp_path / "s", ragged, few, "module"))
    rows = source.evaluation(CONFIG)
    assert len(rows.held_out) == 32
    assert rows.origin.startswith("3 given rows, repeated to 32")
    labelled = open_source(tmp_path / "l", expected_sha256=_write(tmp_path / "l", ragged, few, "module", np.zeros(3, np.int64)))
    with pytest.raises(UsageError, match=r"too few labelled rows .*\(3\)"):
        labelled.evaluation(CONFIG)


def test_a_sample_that_does_not_fit_together_is_refused(ragged, sample, tmp_path):
    crooked = {**sample, "weight": sample["weight"][:5]}
    with pytest.raises(UsageError, match="differ in their number of rows"):
        _write(tmp_path / "s", ragged, crooked, "module")


@pytest.mark.parametrize("file", ["import.json", "sample.npz", "weights.safetensors"])
def test_a_changed_file_is_refused(file, ragged, sample, tmp_path):
    digest = _write(tmp_path / "s", ragged, sample, "module")
    path = tmp_path / "s" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(Corrupt, match=file):
        open_source(tmp_path / "s", expected_sha256=digest)


def test_weights_of_another_class_are_refused(ragged, sample, tmp_path):
    _write(tmp_path / "s", ragged, sample, "module")
    description = (tmp_path / "s" / "import.json").read_text()
    (tmp_path / "s" / "import.json").write_text(description.replace('"width":6', '"width":7'))
    with pytest.raises(UsageError, match=r"the weights do not fit the class .*Ragged"):
        open_source(tmp_path / "s", expected_sha256=write_manifest(tmp_path / "s"))


def test_a_kind_and_its_class_go_together():
    with pytest.raises(UsageError, match="a class goes with kind module"):
        ImportedModel(kind="onnx", task="regression", export=CONFIG, model=ComponentConfig(class_path="a.B"))
    with pytest.raises(UsageError, match="unknown kind"):
        ImportedModel(kind="keras", task="regression", export=CONFIG)  # type: ignore[arg-type]


def test_the_description_survives_being_stored():
    described = ImportedModel(kind="onnx", task="regression", export=CONFIG, origin={"file": "a.onnx"})
    assert ImportedModel.from_json(described.to_json()) == described


def test_a_free_dimension_must_be_there(ragged, sample, tmp_path):
    source = open_source(tmp_path / "s", expected_sha256=_write(tmp_path / "s", ragged, sample, "module"))
    assert isinstance(source, ImportedSource)
    for dynamic, message in (({"tokens": (2,)}, "dimension 2 of tokens"), ({"words": (1,)}, r"does not have \(words\)")):
        config = ExportConfig(outputs=CONFIG.outputs, dynamic=dynamic)
        with pytest.raises(UsageError, match=message):
            stage.measure_eager(source, config, scratch=tmp_path)
