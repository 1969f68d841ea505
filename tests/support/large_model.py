"""A model of 105 million parameters from export to an answering worker, in a process of its own whose peak memory is measured.

    python -m support.large_model DIRECTORY [--external-data-bytes N] [--directory-above-bytes N]

Prints one JSON line: what was made, and the process's peak resident memory after each stage in bytes. With the two limits forced
down, the code for models above 1.5 GB and archives above 1 GB runs for real.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from registry.bundle import CERTIFICATE, GOLDEN, PROFILE, SIGNATURE, TOLERANCE, VARIANTS, Bundle, canonical_json, write_manifest
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec
from serving.archive import build_archive, open_archive
from training.data.batches import Rows
from training.evaluate import predict
from training.export.certificate.certify import certify
from training.export.certificate.reference import Reference
from training.export.exporter import ExportContext
from training.export.variants.onnx_fp32 import OnnxFp32

VERSION = ModelVersion("wide", 1)
NUM_ROWS = 32


def wide_mlp(width: int, num_layers: int) -> nn.Module:
    """Layers of width x width with ReLU between them, and ten classes."""
    torch.manual_seed(0)
    layers = [layer for _ in range(num_layers) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10)).eval()


def reference_of(model: nn.Module, width: int) -> Reference:
    """Random rows with what the model answers to them."""
    rows = {"input": np.random.default_rng(0).normal(size=(NUM_ROWS, width)).astype(np.float32)}
    outputs = predict(model, rows, outputs=["logits"], task="classification")
    signature = Signature(inputs=(TensorSpec("input", "FP32", (-1, width)),), outputs=(TensorSpec("logits", "FP32", (-1, 10)),))
    held_out = Rows(inputs=rows, target=outputs["logits"].argmax(-1))
    return Reference(signature=signature, rows=held_out, outputs=outputs, task="classification", labelled=False)


def context_of(reference: Reference, scratch: Path, external_data_bytes: int) -> ExportContext:
    """What an exporter of the model works with; its scratch directory is made."""
    scratch.mkdir()
    return ExportContext(
        signature=reference.signature,
        example={"input": torch.from_numpy(reference.rows.inputs["input"][:4])},
        calibration=reference.rows,
        task="classification",
        scratch=scratch,
        external_data_bytes=external_data_bytes,
    )


def make_bundle(model: nn.Module, reference: Reference, context: ExportContext, root: Path, note: Callable[[str], None]) -> Bundle:
    """The bundle of the variant `onnx-fp32`, certified."""
    directory = root / VARIANTS / OnnxFp32.name
    directory.mkdir(parents=True)
    exporter = OnnxFp32()
    exporter.export(model, context, directory)
    note("export")
    measured = certify(
        directory,
        version=VERSION,
        source_sha256="0" * 64,
        variant=exporter.name,
        reference=reference,
        limits=exporter.limits,
        accuracy_drop=0.01,
        inspection=exporter.inspect(directory, model, context),
    )
    note("certificate")
    (directory / CERTIFICATE).write_text(canonical_json(measured.certificate.to_json()))
    (root / SIGNATURE).write_text(canonical_json(reference.signature.to_json()))
    (root / TOLERANCE).write_text(canonical_json({exporter.name: measured.tolerance}))
    (root / PROFILE).write_text("{}")
    golden: dict[str, Any] = {"in/input": reference.rows.inputs["input"][:8], "out/logits": reference.outputs["logits"][:8]}
    np.savez(root / GOLDEN, **golden)
    write_manifest(root)
    return Bundle.open(root)


def main(argv: list[str]) -> None:
    """Export, certify and archive; the worker is the caller's to start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--external-data-bytes", type=int, default=100_000_000)
    parser.add_argument("--directory-above-bytes", type=int, default=100_000_000)
    arguments = parser.parse_args(argv)
    peaks: dict[str, int] = {}

    def note(stage: str) -> None:
        peaks[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    note("imports")
    model = wide_mlp(arguments.width, arguments.layers)
    reference = reference_of(model, arguments.width)
    note("model")
    context = context_of(reference, arguments.directory / "scratch", arguments.external_data_bytes)
    bundle = make_bundle(model, reference, context, arguments.directory / "bundle", note)
    certificate = bundle.certificate(OnnxFp32.name)
    archive = build_archive(
        bundle, OnnxFp32.name, VERSION, arguments.directory / "archives", directory_above_bytes=arguments.directory_above_bytes
    )
    open_archive(archive.path, archive.sha256)
    note("archive")
    result = {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "passed": certificate.passed,
        "failures": [str(failure) for failure in certificate.failures],
        "files": sorted(path.name for path in bundle.variant_dir(OnnxFp32.name).iterdir()),
        "archive": str(archive.path),
        "engine_version": archive.engine_version,
        "peak_bytes": peaks,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
