"""A TorchScript file as a source: loaded by torch.jit, its face changed where asked, saved again.

TorchScript files hold pickles, read by a loader of torch's own in C++ that makes tensors, numbers, lists and the file's own
TorchScript classes, and calls nothing. Their code runs in TorchScript's interpreter, which has no way to files or processes
unless operators that have one were registered in this process.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from registry.errors import UsageError
from training.importing.adapted import Face
from training.importing.brought import Brought
from training.importing.request import Adaptation, ImportRequest
from training.importing.sample import Sample, in_order
from training.source.imported import model_file
from training.source.modules import load_torchscript

_TRACE_ROWS = 2


def is_torchscript(file: Path) -> bool:
    """Whether it is a TorchScript file: a zip with code in it."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return any(name.split("/", 1)[-1].startswith("code/") for name in names) and any(name.endswith("/constants.pkl") for name in names)


def bring_torchscript(request: ImportRequest, sample: Sample, into: Path) -> Brought:
    """Load the file and write it as `model.pt`.

    Raises:
        UsageError: Not a TorchScript file, the sample has other inputs, or the model does not take them.
    """
    try:
        module = load_torchscript(request.file)
    except RuntimeError as error:
        raise UsageError(f"not a TorchScript file ({request.file}: {_one_line(error)})", "Save it with torch.jit.save.") from error
    parameters = forward_parameters(module)
    sample = sample.named(tuple(parameters))
    names = _taken(parameters, sample, request.adaptation)
    inputs = in_order(sample, names, what=request.file.name)
    outputs = request.export.outputs
    # Without keywords, inputs are handed over by position: parameters between them would get the wrong ones.
    if request.adaptation or names != tuple(parameters)[: len(names)]:
        face = Face(module, inputs=names, outputs=outputs, adaptation=_typed(request.adaptation, parameters))
        example = tuple(torch.from_numpy(array[:_TRACE_ROWS].copy()) for array in inputs.values())
        module = _traced(face, example)
    with _deprecation_hidden():
        torch.jit.save(module, str(model_file(into, "torchscript")))
    return Brought(kind="torchscript", inputs=inputs, outputs=outputs, facts={"parameters": sum(p.numel() for p in module.parameters())})


def forward_parameters(module: nn.Module) -> dict[str, Any]:
    """Parameter of `forward` -> its schema entry, in order."""
    schema = module._c._get_method("forward").schema  # type: ignore[union-attr,operator]
    return {argument.name: argument for argument in schema.arguments[1:]}


def _taken(parameters: Mapping[str, Any], sample: Sample, adaptation: Adaptation) -> tuple[str, ...]:
    """The parameters that the sample must give: those without a default or a fixed value, and those that it has anyway."""
    unknown = [name for name in adaptation.fixed if name not in parameters]
    if unknown:
        raise UsageError(f"--fix names an input that forward does not have ({unknown[0]})", f"It takes {', '.join(parameters)}.")
    return tuple(
        name
        for name, argument in parameters.items()
        if name not in adaptation.fixed and (name in sample.inputs or not argument.has_default_value())
    )


def _typed(adaptation: Adaptation, parameters: Mapping[str, Any]) -> Adaptation:
    """Fixed values as tensors where `forward` takes tensors."""
    fixed = {name: torch.tensor(value) if str(parameters[name].type) == "Tensor" else value for name, value in adaptation.fixed.items()}
    return Adaptation(fixed=fixed, batch_axes=adaptation.batch_axes, normalize=adaptation.normalize)


def _traced(face: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    """The face as TorchScript. What it holds is called as it is, its branches included: only the face itself is traced."""
    with _deprecation_hidden(), torch.no_grad():
        try:
            traced: torch.jit.ScriptModule = torch.jit.trace(_Positional(face).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        except (RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"the model does not take the sample ({_one_line(error)})", "Check names, types and shapes of the sample."
            ) from error
    return traced


class _Positional(nn.Module):
    """Tensors without names: a trace has no dicts."""

    def __init__(self, face: nn.Module) -> None:
        super().__init__()
        self.face = face

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        answer = self.face(*tensors)
        values = tuple(answer.values()) if isinstance(answer, Mapping) else tuple(answer)
        return values[0] if len(values) == 1 else values


@contextmanager
def _deprecation_hidden() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is deprecated.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)  # it remarks on each constant of the face
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
