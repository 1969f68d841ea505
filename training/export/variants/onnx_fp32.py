"""Variant `onnx-fp32`: the graph as it is, in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from training.export.exporter import FP32_LIMITS, ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import fp32_graph, graph_facts


class OnnxFp32:
    """ONNX in float32, for ONNX Runtime."""

    name = "onnx-fp32"
    limits: Limits = FP32_LIMITS

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """Fits every model."""
        return None

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.onnx`."""
        made = fp32_graph(model, context)
        for file in made.parent.iterdir():  # the graph, and its external data if it has any
            shutil.copyfile(file, into / file.name)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Facts of the graph."""
        return Inspection(facts=graph_facts(directory / ONNX_FILE))
