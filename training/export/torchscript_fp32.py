"""Variant `torchscript-fp32`: the traced and frozen model in float32, for libtorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.module import _jit_is_scripting
from torch import nn

from training.export.exporter import FP32_LIMITS, TORCHSCRIPT_FILE, ExportContext, Inspection, Limits
from training.interface import Inference, evaluating
from training.source.modules import ProgramModule

# Written by torch's file writer itself.
_WRITERS_OWN = frozenset({"version", "byteorder", ".data/serialization_id", ".data/version"})


class TorchScriptFp32:
    """TorchScript in float32."""

    name = "torchscript-fp32"
    limits: Limits = FP32_LIMITS

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """See `no_torchscript`."""
        return no_torchscript(model, context)

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.pt`."""
        traced = into / f"{TORCHSCRIPT_FILE}.traced"
        with warnings.catch_warnings():
            # Upstream deprecates TorchScript; it stays in torch and TorchServe, and ONNX is the variant beside it.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is deprecated.*", category=DeprecationWarning)
            # A LightningModule's `trainer` raises when torch looks at it, except in this block.
            with evaluating(model), _jit_is_scripting(), torch.no_grad():
                module = torch.jit.trace(Inference(model), tuple(context.example.values()), check_trace=False)  # type: ignore[no-untyped-call]
                torch.jit.save(torch.jit.freeze(module), str(traced))
        _strip_debug(traced, into / TORCHSCRIPT_FILE)
        traced.unlink()

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Facts of the file."""
        facts: dict[str, Any] = {"torch": torch.__version__}
        return Inspection(facts=facts)


def no_torchscript(model: nn.Module, context: ExportContext) -> str | None:
    """Why a model cannot become TorchScript; None if it can."""
    if context.given_graph is not None:
        return "an ONNX file cannot become TorchScript"
    if isinstance(model, ProgramModule):
        return "a torch.export program cannot be traced"  # its guards on sizes cannot
    return None


def _strip_debug(source: Path, target: Path) -> None:
    """Copy a TorchScript file without its debug records: they hold the paths of this machine."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    writer.set_min_version(int(reader.get_record("version")))  # it decides what operators mean
    for name in reader.get_all_records():
        if name not in _WRITERS_OWN and not name.endswith(".debug_pkl"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
