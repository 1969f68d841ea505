"""The engines that execute a model. Each is imported only by the archive that needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .backend_aoti import AotiBackend
from .backend_onnx import OnnxBackend
from .backend_torchscript import TorchScriptBackend
from .errors import LoadError
from .tensors import Array, Spec

ONNX_FILE = "model/model.onnx"
TORCHSCRIPT_FILE = "model/model.pt"
AOTI_FILE = "model/model.pt2"


class Backend(Protocol):
    """One loaded model."""

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Outputs by name for inputs in the signature's order. Any exception means that the run failed."""


def load(
    root: Path, kind: str, inputs: Sequence[Spec], outputs: Sequence[Spec], options: Mapping[str, Any], *, gpu_id: int | None = None
) -> Backend:
    """Load the model of an unpacked archive. Raises LoadError, or what the engine raises for a broken file."""
    if kind == "onnxruntime":
        return OnnxBackend(root / ONNX_FILE, inputs, outputs, options, gpu_id)
    if kind == "torchscript":
        return TorchScriptBackend(root / TORCHSCRIPT_FILE, inputs, outputs, options, gpu_id)
    if kind == "aoti":
        return AotiBackend(root / AOTI_FILE, inputs, outputs, options, gpu_id)
    raise LoadError(f"unknown backend ({kind})")
