"""ONNX Runtime in a worker."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import gpu
from .datatypes import from_bf16, to_bf16
from .errors import LoadError
from .tensors import Array, Spec

_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16


class OnnxBackend:
    """ONNX Runtime with exactly the wanted provider."""

    def __init__(self, file: Path, inputs: Sequence[Spec], outputs: Sequence[Spec], options: Mapping[str, Any], gpu_id: int | None) -> None:
        # From 1.32 ONNX Runtime reports to its vendor from the moment it is imported; both names have meant "do not".
        for variable in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"):
            os.environ[variable] = "1"
        ort: Any = importlib.import_module("onnxruntime")
        wanted = str(options["provider"])
        gpu.check_providers(wanted, ort.get_available_providers())
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = int(options["intra_op_threads"])
        session_options.inter_op_num_threads = 1
        session_options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Workers share the machine: a thread that waits must not burn a core.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = ort.InferenceSession(str(file), sess_options=session_options, providers=gpu.providers(options, gpu_id))
        # ONNX Runtime falls back to the CPU without an error.
        if self._session.get_providers()[0] != wanted:
            raise LoadError(f"execution provider {wanted} was asked for, ONNX Runtime uses {self._session.get_providers()[0]}")
        for side, specs, nodes in (("input", inputs, self._session.get_inputs()), ("output", outputs, self._session.get_outputs())):
            missing = {spec.name for spec in specs} - {node.name for node in nodes}
            if missing or (side == "input" and len(nodes) != len(specs)):
                raise LoadError(f"the model's {side}s are {[n.name for n in nodes]}, the signature's {[s.name for s in specs]}")
        self._inputs = [spec.name for spec in inputs]
        self._outputs = [spec.name for spec in outputs]
        self._ort_value: Any = ort.OrtValue
        bf16 = {node.name for node in (*self._session.get_inputs(), *self._session.get_outputs()) if node.type == "tensor(bfloat16)"}
        self._bf16 = bf16 & {*self._inputs, *self._outputs}
        if self._bf16 and any(spec.datatype == "BYTES" for spec in inputs):
            raise LoadError("ONNX Runtime's Python interface cannot pass BYTES and BF16 to one model; give the model FP32 instead of BF16")
        # What numpy cannot name cannot be bound by its help; such a model's tensors travel as they do on the CPU.
        bindable = not self._bf16 and all(spec.datatype != "BYTES" for spec in (*inputs, *outputs))
        graph_rows = int(options["max_rows"]) if options.get("cuda_graph") else 0
        self._bound = (
            gpu.BoundSession(self._session, inputs, outputs, device="cuda", device_id=gpu_id or 0, graph_rows=graph_rows)
            if wanted != gpu.CPU and bindable
            else None
        )

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """See `backends.Backend`."""
        if self._bound is not None:
            return self._bound.run(inputs)
        if self._bf16:
            return self._run_bf16(inputs)
        results = self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)))
        return dict(zip(self._outputs, results, strict=True))

    def _run_bf16(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """For a model with bfloat16 at its border, which numpy cannot name: float32 outside, its upper half inside."""
        feeds = {}
        for name, array in zip(self._inputs, inputs, strict=True):
            if name in self._bf16:
                feeds[name] = self._ort_value.ortvalue_from_numpy_with_onnx_type(to_bf16(array), _ONNX_BFLOAT16)
            else:
                feeds[name] = self._ort_value.ortvalue_from_numpy(np.ascontiguousarray(array))
        results = self._session.run_with_ort_values(self._outputs, feeds)
        return {
            name: _from_bf16_value(value) if name in self._bf16 else value.numpy()
            for name, value in zip(self._outputs, results, strict=True)
        }


def _from_bf16_value(value: Any) -> Array:
    """The float32 values of a bfloat16 tensor of ONNX Runtime in the machine's own memory, which it gives out by address only."""
    shape = tuple(value.shape())
    num_values = math.prod(shape)
    if num_values == 0:
        return np.zeros(shape, np.float32)
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * num_values).from_address(value.data_ptr()))
    return from_bf16(bits).reshape(shape)
