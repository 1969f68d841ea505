"""The variants there are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from registry.errors import NotFound
from training.export.exporter import ExportContext, Exporter
from training.export.variants.aoti import AotInductor
from training.export.variants.onnx_fp16 import OnnxFp16
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.onnx_int4_weights import OnnxInt4Weights
from training.export.variants.onnx_int8_dynamic import OnnxInt8Dynamic
from training.export.variants.onnx_int8_static import OnnxInt8Static
from training.export.variants.torchscript_fp16 import TorchScriptFp16
from training.export.variants.torchscript_fp32 import TorchScriptFp32
from training.export.variants.torchscript_int8 import TorchScriptInt8

EXPORTERS: tuple[Exporter, ...] = (
    OnnxFp32(),
    OnnxFp16(),
    OnnxInt8Dynamic(),
    OnnxInt8Static(),
    OnnxInt4Weights(),
    TorchScriptFp32(),
    TorchScriptFp16(),
    TorchScriptInt8(),
    AotInductor(),
)


def exporters(names: Sequence[str]) -> tuple[Exporter, ...]:
    """The exporters of these variants, in the order given, each once. Raises NotFound, naming the ones there are."""
    by_name = {exporter.name: exporter for exporter in EXPORTERS}
    for name in names:
        if name not in by_name:
            raise NotFound(f"no such variant ({name})", f"Variants are {', '.join(by_name)}.")
    return tuple(by_name[name] for name in dict.fromkeys(names))


def unfit(exporters: Sequence[Exporter], model: nn.Module, context: ExportContext) -> dict[str, str]:
    """Variant -> why it makes no sense for this model on this target; only those that do not fit."""
    reasons = {exporter.name: exporter.unfit(model, context) for exporter in exporters}
    return {name: reason for name, reason in reasons.items() if reason is not None}
