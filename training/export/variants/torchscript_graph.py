"""TorchScript files of a model: traced, frozen, saved without this machine's paths. What the `torchscript-*` variants share."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.module import _jit_is_scripting
from torch import nn

from training.export.exporter import ExportContext
from training.interface import evaluating
from training.source.modules import ProgramModule

# Written by torch's file writer itself.
_WRITERS_OWN = frozenset({"version", "byteorder", ".data/serialization_id", ".data/version"})


def no_torchscript(model: nn.Module, context: ExportContext) -> str | None:
    """Why a model cannot become TorchScript; None if it can."""
    if context.given_graph is not None:
        return "an ONNX file cannot become TorchScript"
    if isinstance(model, ProgramModule):
        return "a torch.export program cannot be traced"  # its guards on sizes cannot
    return None


def save_traced(module: nn.Module, example: Sequence[torch.Tensor], path: Path) -> None:
    """Trace and freeze a module that takes and answers tensors, and write it. Raises what tracing raises."""
    traced = path.with_name(f"{path.name}.traced")
    # A LightningModule's `trainer` raises when torch looks at it, except in this block.
    with quiet_torchscript(), evaluating(module), _jit_is_scripting(), torch.no_grad():
        # torch's own layers check their inputs in Python; the user's layers are warned of.
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning, module=r"torch\.(nn|ao)\.")
        script = torch.jit.trace(module, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(script), str(traced))
    _strip_debug(traced, path)
    traced.unlink()


def detached_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode that can be changed. A LightningModule's trainer, with its data, is not copied."""
    trainer = model.__dict__.get("_trainer")
    if trainer is not None:
        model.__dict__["_trainer"] = None
    try:
        return copy.deepcopy(model).eval()
    finally:
        if trainer is not None:
            model.__dict__["_trainer"] = trainer


def operator_counts(path: Path) -> dict[str, int]:
    """How often each operator is in the graph of a TorchScript file, its blocks included; constants and control flow are none."""
    with quiet_torchscript():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return dict(sorted(Counter(operators(module.inlined_graph)).items()))


def operators(block: Any) -> Iterator[str]:
    """The kind of every operator of a graph or block, for example `aten::linear`."""
    for node in block.nodes():
        if not str(node.kind()).startswith("prim::"):
            yield str(node.kind())
        for inner in node.blocks():
            yield from operators(inner)


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Without the notes that upstream deprecates TorchScript; it stays in torch and TorchServe, and other variants are beside it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is deprecated.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.* are deprecated.*", category=UserWarning)
        yield


def _strip_debug(source: Path, target: Path) -> None:
    """Copy a TorchScript file without its debug records: they hold the paths of this machine."""
    reader = torch._C.PyTorchFileReader(str(source))
    names = reader.get_all_records()
    writer = torch._C.PyTorchFileWriter(str(target))
    # The version of the operators decides what they mean. torch moves it to the second name where a model uses newer ones.
    version = "version" if "version" in names else ".data/version"
    writer.set_min_version(int(reader.get_record(version)))
    for name in names:
        if name not in _WRITERS_OWN and not name.endswith(".debug_pkl"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
