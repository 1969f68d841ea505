"""Variant `torchscript-fp32`: the traced and frozen model in float32, for libtorch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from training.export.exporter import FP32_LIMITS, TORCHSCRIPT_FILE, ExportContext, Inspection, Limits
from training.export.variants.torchscript_graph import no_torchscript, operator_counts, save_traced
from training.interface import Inference


class TorchScriptFp32:
    """TorchScript in float32."""

    name = "torchscript-fp32"
    limits: Limits = FP32_LIMITS

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """See `no_torchscript`."""
        return no_torchscript(model, context)

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.pt`."""
        save_traced(Inference(model), tuple(context.example.values()), into / TORCHSCRIPT_FILE)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Facts of the file."""
        return Inspection(facts={"torch": torch.__version__, "operators": operator_counts(directory / TORCHSCRIPT_FILE)})
