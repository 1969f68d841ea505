"""Runs on a GPU: which provider with which settings, and tensors that are bound to the device's memory.

A worker has one device, the one that the engine gave it (`gpu_id`); several workers may share it. A CUDA graph is a recorded
run that is replayed without launching its kernels one by one. It needs fixed shapes and fixed addresses, so there is one for each
size of batch that is a power of two, and a batch is filled up with zeros to the next one:

    5 rows, max_rows 32    run as 8 rows; the 3 rows of zeros are cut off the answer

Sources: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html (options, CUDA graphs),
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import LoadError
from .tensors import Array, Spec

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_GRAPH_ID = "gpu_graph_id"  # which recorded run is replayed; one per size of batch


def providers(options: Mapping[str, Any], gpu_id: int | None) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers in order, for a worker's device (None: the first). The first one is the one that is wanted.

    TensorRT leaves what it cannot do to CUDA, never to the CPU.
    """
    wanted, device_id = str(options["provider"]), str(gpu_id or 0)
    cuda = {
        "device_id": device_id,
        "arena_extend_strategy": "kSameAsRequested",  # several workers share one device: take what is needed, not double
        "use_tf32": "0",  # the certificate was measured without
        **({"enable_cuda_graph": "1"} if options.get("cuda_graph") else {}),
    }
    if wanted == CUDA:
        return [(CUDA, cuda)]
    if wanted == TENSORRT:
        fp16 = "1" if options.get("tensorrt_fp16") else "0"
        return [(TENSORRT, {"device_id": device_id, "trt_fp16_enable": fp16}), (CUDA, cuda)]
    return [(wanted, {})]


def check_providers(wanted: str, available: Sequence[str]) -> None:
    """Raise LoadError where the wanted provider is not installed: nothing falls back to the CPU in silence."""
    if wanted not in available:
        raise LoadError(f"execution provider {wanted} is not installed here (there are {', '.join(available)})")


def bucket(num_rows: int, max_rows: int) -> int:
    """The size of batch that so many rows run as: the next power of two, at most `max_rows`; more rows run as they are.

    >>> [bucket(rows, 32) for rows in (1, 3, 8, 33)]
    [1, 4, 8, 33]
    """
    return num_rows if num_rows > max_rows else min(1 << (num_rows - 1).bit_length(), max_rows)


def fixed_behind_the_batch(specs: Sequence[Spec]) -> bool:
    """Whether only the first dimension of these tensors may vary."""
    return all(dimension > 0 for spec in specs for dimension in spec.shape[1:])


class BoundSession:
    """A session whose inputs and outputs are bound to the memory of a device.

    Args:
        device: `cuda`; `cpu` works too, and is what tests without a GPU use.
        graph_rows: Largest batch that is recorded and replayed; 0 records nothing.
    """

    def __init__(
        self, session: Any, inputs: Sequence[Spec], outputs: Sequence[Spec], *, device: str, device_id: int, graph_rows: int = 0
    ) -> None:
        self._ort: Any = importlib.import_module("onnxruntime")
        self._session = session
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._device, self._device_id = device, device_id
        if graph_rows and not fixed_behind_the_batch((*inputs, *outputs)):
            raise LoadError("a CUDA graph needs fixed shapes behind the batch dimension; serve this model without cuda_graph")
        self._graph_rows = graph_rows
        self._recorded: dict[int, _Recorded] = {}

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Outputs by name for inputs in the signature's order."""
        num_rows = inputs[0].shape[0]
        if num_rows > self._graph_rows:
            return self._run_bound(inputs)
        size = bucket(num_rows, self._graph_rows)
        if size not in self._recorded:
            self._recorded[size] = _Recorded(self, size)
        return self._recorded[size].run(inputs, num_rows)

    def _run_bound(self, inputs: Sequence[Array]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for spec, array in zip(self._inputs, inputs, strict=True):
            binding.bind_ortvalue_input(spec.name, self._ort.OrtValue.ortvalue_from_numpy(_c(array), self._device, self._device_id))
        for spec in self._outputs:
            binding.bind_output(spec.name, "cpu")  # copied once, by ONNX Runtime, when it is there
        options = self._ort.RunOptions()
        if self._graph_rows:
            options.add_run_config_entry(_GRAPH_ID, "-1")  # a batch of another size than the recorded ones: neither record nor replay
        self._session.run_with_iobinding(binding, options)
        return {spec.name: array for spec, array in zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True)}


class _Recorded:
    """One size of batch: its tensors stay where they are, so that the recorded run finds them."""

    def __init__(self, bound: BoundSession, num_rows: int) -> None:
        self._session = bound._session
        self._binding = bound._session.io_binding()
        self._fixed: list[tuple[Any, Array]] = []
        self._results: dict[str, Any] = {}
        for spec in bound._inputs:
            # The array in the machine's memory keeps its zeros behind the rows that a batch has.
            array = np.zeros((num_rows, *spec.shape[1:]), spec.dtype)
            value = bound._ort.OrtValue.ortvalue_from_numpy(array, bound._device, bound._device_id)
            self._binding.bind_ortvalue_input(spec.name, value)
            self._fixed.append((value, array))
        for spec in bound._outputs:
            shape = [num_rows, *spec.shape[1:]]
            value = bound._ort.OrtValue.ortvalue_from_shape_and_type(shape, spec.dtype, bound._device, bound._device_id)
            self._binding.bind_ortvalue_output(spec.name, value)
            self._results[spec.name] = value
        self._options = bound._ort.RunOptions()
        self._options.add_run_config_entry(_GRAPH_ID, str(num_rows))

    def run(self, inputs: Sequence[Array], num_rows: int) -> dict[str, Array]:
        """Outputs for the first `num_rows` rows."""
        for (value, array), given in zip(self._fixed, inputs, strict=True):
            array[:num_rows] = given
            array[num_rows:] = 0
            value.update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: np.array(value.numpy()[:num_rows]) for name, value in self._results.items()}


def _c(array: Array) -> Array:
    return np.ascontiguousarray(array)
