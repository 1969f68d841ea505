"""Variants for CUDA on a real NVIDIA GPU: certified where they will run, with bound tensors, and measured beside PyTorch.

Never run so far for want of a machine; what does not need one is in tests/unit/training/test_other_variants.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.gpu_variants import BATCHES, context_of, convnet, pytorch, rows_per_s, variants
from registry.names import ModelVersion
from training.data.batches import Rows
from training.evaluate import predict
from training.export.catalog import EXPORTERS
from training.export.certificate.certify import certify
from training.export.certificate.reference import Reference
from training.export.runners import CUDA, OnnxRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/proc/driver/nvidia/version").exists(), reason="there is no NVIDIA driver here"),
]
NAMES = ("onnx-fp32", "onnx-fp16", "torchscript-fp32", "torchscript-fp16")


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_certified_on_the_gpu(name: str, tmp_path: Path) -> None:
    model = convnet()
    context = context_of(model, tmp_path, "cuda")
    (exporter,) = (exporter for exporter in EXPORTERS if exporter.name == name)
    assert exporter.unfit(model, context) is None
    directory = tmp_path / name
    directory.mkdir()
    exporter.export(model, context, directory)
    rows = context.calibration.inputs
    outputs = predict(model, rows, outputs=["logits"], task="classification")
    held_out = Rows(inputs=rows, target=outputs["logits"].argmax(-1))
    certificate = certify(
        directory,
        version=ModelVersion("convnet", 1),
        source_sha256="",
        variant=name,
        reference=Reference(signature=context.signature, rows=held_out, outputs=outputs, task="classification", labelled=False),
        limits=exporter.limits,
        accuracy_drop=0.05,
        inspection=exporter.inspect(directory, model, context),
        target="cuda",
    ).certificate
    assert certificate.passed, certificate.failures
    assert certificate.facts["provider"] in (CUDA, "cuda")


def test_tensors_are_bound_to_the_gpu(tmp_path: Path) -> None:
    assert CUDA in onnxruntime.get_available_providers()
    model = convnet()
    context = context_of(model, tmp_path, "cuda")
    (exporter,) = (exporter for exporter in EXPORTERS if exporter.name == "onnx-fp32")
    exporter.export(model, context, tmp_path)
    path, rows = tmp_path / "model.onnx", {"image": context.calibration.inputs["image"][:8]}
    bound = OnnxRunner(path, context.signature, wanted_provider=CUDA, device="cuda").run(rows)["logits"]
    np.testing.assert_allclose(bound, OnnxRunner(path, context.signature).run(rows)["logits"], rtol=1e-3, atol=1e-5)


def test_every_way_is_measured_at_every_batch(tmp_path: Path) -> None:
    assert torch.cuda.is_available()
    model = convnet()
    ways = variants(model, context_of(model, tmp_path, "cuda"), NAMES)
    ways |= {"eager": pytorch(model, "cuda", compiled=False), "compiled": pytorch(model, "cuda", compiled=True)}
    rates = rows_per_s(ways, seconds=0.2)
    assert set(rates) == {*NAMES, "eager", "compiled"}
    assert all(rate > 0 for by_size in rates.values() for rate in by_size.values())
    assert all(set(by_size) == set(BATCHES) for by_size in rates.values())
