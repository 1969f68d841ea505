"""libtorch in a worker, for TorchScript."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import gpu
from .errors import LoadError
from .tensors import Array, Spec


class TorchScriptBackend:
    """A TorchScript module; its outputs are a tensor, a tuple of tensors, or a dict by name."""

    def __init__(self, file: Path, inputs: Sequence[Spec], outputs: Sequence[Spec], options: Mapping[str, Any], gpu_id: int | None) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(int(options["intra_op_threads"]))
        wants_gpu = str(options["provider"]) != gpu.CPU
        if wants_gpu and not self._torch.cuda.is_available():
            raise LoadError("a GPU was asked for, torch sees none")
        self._device = f"cuda:{gpu_id or 0}" if wants_gpu else "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; this archive is made of it all the same
            self._module: Any = self._torch.jit.load(str(file), map_location=self._device).eval()
        self._outputs = [spec.name for spec in outputs]
        if any(spec.datatype == "BYTES" for spec in (*inputs, *outputs)):
            raise LoadError("TorchScript has no tensors of BYTES")
        self._bf16_inputs = [spec.datatype == "BF16" for spec in inputs]

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """See `backends.Backend`."""
        # torch wants memory that it may write to; a request's raw bytes are read-only.
        tensors = [self._torch.from_numpy(a if a.flags.writeable else a.copy()).to(self._device) for a in map(np.ascontiguousarray, inputs)]
        half = self._torch.bfloat16
        tensors = [tensor.to(half) if is_bf16 else tensor for tensor, is_bf16 in zip(tensors, self._bf16_inputs, strict=True)]
        with self._torch.inference_mode():
            result = self._module(*tensors)
        if isinstance(result, dict):
            return {name: self._to_numpy(result[name]) for name in self._outputs}
        results = result if isinstance(result, (tuple, list)) else (result,)
        if len(results) < len(self._outputs):
            raise LoadError(f"the model has {len(results)} outputs, the signature {len(self._outputs)}")
        return {name: self._to_numpy(value) for name, value in zip(self._outputs, results, strict=False)}

    def _to_numpy(self, tensor: Any) -> Array:
        array: Array = (tensor.float() if tensor.dtype is self._torch.bfloat16 else tensor).cpu().numpy()
        return array
