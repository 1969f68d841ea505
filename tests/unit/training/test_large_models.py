"""Weights beside their graph: written from the module's memory, refused when they are not all there. The limit is forced down."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import onnx
import pytest

from registry.bundle import Bundle, write_manifest
from registry.errors import Corrupt
from registry.names import ModelVersion
from serving.archive import build_archive
from serving.runtime.modelway_runtime import worker
from serving.runtime.modelway_runtime.errors import LoadError
from support.large_model import VERSION, context_of, make_bundle, reference_of, wide_mlp
from training.export.certificate.certify import certify
from training.export.runners import open_variant
from training.export.variants.onnx_fp16 import OnnxFp16
from training.export.variants.onnx_fp32 import OnnxFp32

WIDTH = 32


@pytest.fixture
def made(tmp_path):
    model = wide_mlp(WIDTH, 2)
    reference = reference_of(model, WIDTH)
    context = context_of(reference, tmp_path / "scratch", external_data_bytes=0)
    directory = tmp_path / "variant"
    directory.mkdir()
    OnnxFp32().export(model, context, directory)
    return model, reference, context, directory


def _certificate(directory, reference, inspection):
    return certify(
        directory,
        version=ModelVersion("wide", 1),
        source_sha256="",
        variant="onnx-fp32",
        reference=reference,
        limits=OnnxFp32().limits,
        accuracy_drop=0.01,
        inspection=inspection,
    ).certificate


def test_weights_lie_beside_the_graph_and_the_variant_passes(made):
    model, reference, context, directory = made
    assert sorted(path.name for path in directory.iterdir()) == ["model.onnx", "model.onnx.data"]
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    outside = [tensor.name for tensor in graph.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) >= 3  # one per layer; the exporter may keep the small biases in the graph
    certificate = _certificate(directory, reference, OnnxFp32().inspect(directory, model, context))
    assert certificate.passed, certificate.failures
    assert set(certificate.facts["files_bytes"]) == {"model.onnx", "model.onnx.data"}


def test_small_weights_stay_in_the_graph_and_answer_the_same(made, tmp_path):
    model, reference, context, directory = made
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "scratch-2").mkdir()
    small = dataclasses.replace(context, external_data_bytes=1 << 30, scratch=tmp_path / "scratch-2")
    OnnxFp32().export(model, small, inside)
    assert [path.name for path in inside.iterdir()] == ["model.onnx"]
    rows = reference.rows.inputs
    answers = [open_variant(path, reference.signature).run(rows)["logits"] for path in (directory, inside)]
    np.testing.assert_array_equal(*answers)


def _truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 8 * 4 + 3] ^= 0x40  # the exponent of a weight
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda path: path.unlink()], ids=["truncated", "flipped", "missing"])
def test_damaged_weights_get_no_passing_certificate(made, damage):
    model, reference, context, directory = made
    inspection = OnnxFp32().inspect(directory, model, context)  # of the whole file: the damage must be found by what runs
    damage(directory / "model.onnx.data")
    certificate = _certificate(directory, reference, inspection)
    assert not certificate.passed


def test_truncated_weights_are_refused_by_manifest(tmp_path):
    model = wide_mlp(WIDTH, 2)
    reference = reference_of(model, WIDTH)
    context = context_of(reference, tmp_path / "scratch", external_data_bytes=0)
    bundle = make_bundle(model, reference, context, tmp_path / "bundle", lambda stage: None)
    archive = build_archive(bundle, "onnx-fp32", VERSION, tmp_path / "archives", directory_above_bytes=0)
    assert worker.load(archive.path, archive.engine_version)
    _truncate(archive.path / "model" / "model.onnx.data")
    with pytest.raises(LoadError, match=r"wrong digest of a file in the archive .model/model\.onnx\.data"):
        worker.load(archive.path, archive.engine_version)
    _truncate(bundle.variant_dir("onnx-fp32") / "model.onnx.data")
    with pytest.raises(Corrupt, match=r"wrong size of a file .*model\.onnx\.data"):
        Bundle.open(bundle.root)
    write_manifest(bundle.root)  # a manifest that was written over the damage: the engine itself refuses
    damaged = build_archive(Bundle.open(bundle.root), "onnx-fp32", VERSION, tmp_path / "damaged", directory_above_bytes=0)
    with pytest.raises(LoadError, match="could not be loaded"):
        worker.load(damaged.path, damaged.engine_version)


def test_an_imported_graph_keeps_its_weights_beside_it(made, tmp_path):
    model, reference, context, directory = made
    (tmp_path / "scratch-2").mkdir()
    imported = dataclasses.replace(context, given_graph=directory / "model.onnx", scratch=tmp_path / "scratch-2")
    copied = tmp_path / "copied"
    copied.mkdir()
    OnnxFp32().export(model, imported, copied)
    assert (copied / "model.onnx.data").stat().st_ino != (directory / "model.onnx.data").stat().st_ino
    assert _certificate(copied, reference, OnnxFp32().inspect(copied, model, imported)).passed


def test_half_precision_reads_and_writes_weights_beside_the_graph(made, tmp_path):
    model, reference, context, directory = made
    half = tmp_path / "half"
    half.mkdir()
    OnnxFp16().export(model, context, half)
    assert (half / "model.onnx.data").stat().st_size < 0.6 * (directory / "model.onnx.data").stat().st_size
    assert all(check.passed for check in OnnxFp16().inspect(half, model, context).checks)
    single = reference.outputs["logits"]
    np.testing.assert_allclose(open_variant(half, reference.signature).run(reference.rows.inputs)["logits"], single, atol=2e-3)
