"""Variant `torchscript-int8`: int8 weights in Linear and recurrent layers, activations quantized as they come, for libtorch on a CPU.

Convolutions stay float32: they need static quantization, which is `onnx-int8-static`'s.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from registry.certificate import Check
from training.export.exporter import TORCHSCRIPT_FILE, ExportContext, Inspection, Limits
from training.export.variants.torchscript_graph import detached_copy, no_torchscript, operator_counts, save_traced
from training.interface import Inference

_OPERATOR = re.compile(r"quantized::linear(_relu)?_dynamic\w*|aten::quantized_(lstm|gru)")
QUANTIZED_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.LSTM, nn.GRU)


class TorchScriptInt8:
    """TorchScript with dynamically quantized layers."""

    name = "torchscript-int8"
    # The scale of the activations is that of the whole batch, so a row's answer depends on its mates within a step of 8 bits.
    limits: Limits = Limits(max_error=0.1, mean_error=0.01, row_error=0.05, min_agreement=0.97, follows_budget=True)

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """For CPUs, and models with a layer that can be quantized dynamically."""
        if context.target != "cpu":
            return "libtorch's int8 layers run on the CPU only"
        if isinstance(model, torch.jit.ScriptModule):
            return "a TorchScript file's layers cannot be replaced"
        return no_torchscript(model, context) or (None if _layers(model) else "it has no Linear, LSTM or GRU layer")

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.pt`."""
        with _quiet_quantizer():
            quantized = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
                detached_copy(model), set(QUANTIZED_LAYERS), dtype=torch.qint8, inplace=True
            )
            save_traced(Inference(quantized), tuple(context.example.values()), into / TORCHSCRIPT_FILE)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """As many quantized operators as the model has layers to quantize, at least one: a quantizer that did nothing reports success."""
        operators = operator_counts(directory / TORCHSCRIPT_FILE)
        found = sum(count for name, count in operators.items() if _OPERATOR.fullmatch(name))
        wanted = max(1, _layers(model))
        check = Check(
            name="quantized/num_layers",
            passed=found >= wanted,
            value=found,
            limit=wanted,
            relation=">=",
            detail="dynamically quantized operators in the file; Linear, LSTM and GRU layers in the model",
        )
        facts = {"torch": torch.__version__, "operators": operators, "num_quantized": found, "engine": torch.backends.quantized.engine}
        return Inspection(checks=(check,), facts=facts)


def _layers(model: nn.Module) -> int:
    return sum(type(module) in QUANTIZED_LAYERS for module in model.modules())


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    with warnings.catch_warnings():
        # Upstream moves these quantizers to another package, which has no TorchScript.
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated.*", category=DeprecationWarning)
        # And the tensors that they make, in some later torch.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.* are deprecated.*", category=UserWarning)
        # The observers of a layer that is replaced at once say that they saw no data.
        warnings.filterwarnings("ignore", message=".*must run observer before calling calculate_qparams.*", category=UserWarning)
        yield
