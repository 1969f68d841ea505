"""Variants as they run in production: loaded from the files in their directory, called with named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch

from registry.signature import Signature
from training.data.batches import Array
from training.export.certificate.placement import PlacedNode
from training.export.exporter import AOTI_FILE, ONNX_FILE, TORCHSCRIPT_FILE
from training.export.onnx_graph import float_makers
from training.export.variants.torchscript_graph import operators, quiet_torchscript
from training.recipe import Target

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# As the workers set it: the certificate is about the arithmetic that will serve.
_PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0"}}
NUM_THREADS = 1  # latencies of variants compare at one thread, whatever else the machine does


class VariantRunner(Protocol):
    """A loaded variant."""

    @property
    def provider(self) -> str:
        """What executes it, as the runtime says."""

    @property
    def wanted_provider(self) -> str:
        """What it was asked to be executed by."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, in the signature's order, each [n, ...]. Raises whatever the runtime raises."""


class OnnxRunner:
    """A variant in ONNX Runtime. On another provider than the CPU its tensors are bound, as in the workers.

    Args:
        device: Where inputs are bound; None binds nothing.
    """

    def __init__(self, path: Path, signature: Signature, *, wanted_provider: str = CPU, device: str | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = NUM_THREADS
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._path = path
        self.wanted_provider = wanted_provider
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=[(wanted_provider, _PROVIDER_OPTIONS.get(wanted_provider, {}))]
        )
        self._outputs = [spec.name for spec in signature.outputs]
        self._device = device

    @property
    def provider(self) -> str:
        """The first provider of the session: ONNX Runtime falls back to the CPU without a word."""
        return str(self._session.get_providers()[0])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `VariantRunner.run`."""
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        answers = self._session.run(self._outputs, feeds) if self._device is None else self._run_bound(feeds, self._device)
        return dict(zip(self._outputs, answers, strict=True))

    def _run_bound(self, feeds: Mapping[str, Array], device: str) -> list[Array]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
        for name in self._outputs:
            binding.bind_output(name, "cpu")  # copied once, by ONNX Runtime, when it is there
        self._session.run_with_iobinding(binding)
        answers: list[Array] = binding.copy_outputs_to_cpu()
        return answers

    def placement(self) -> tuple[PlacedNode, ...] | None:
        """Every node as ONNX Runtime assigned it, after its basic optimizations; None before ONNX Runtime 1.24, which does not tell."""
        tell = getattr(self._session, "get_provider_graph_assignment_info", None)
        if tell is None:
            return None
        nodes = [(str(node.name), str(node.op_type), str(part.ep_name)) for part in tell() for node in part.get_nodes()]
        everywhere = all(provider == self.wanted_provider for _, _, provider in nodes)
        floats = frozenset[str]() if everywhere else float_makers(self._path)
        return tuple(PlacedNode(name=name, operator=operator, provider=on, floats=name in floats) for name, operator, on in nodes)


class TorchScriptRunner:
    """A variant in libtorch."""

    def __init__(self, path: Path, signature: Signature, *, device: str = "cpu") -> None:
        with quiet_torchscript():
            self._module = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._device = device
        self.provider = self.wanted_provider = device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `VariantRunner.run`."""
        with torch.inference_mode():
            answer = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._inputs))
        tensors = (answer,) if isinstance(answer, torch.Tensor) else answer
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def placement(self) -> tuple[PlacedNode, ...] | None:
        """Every operator of the graph and its blocks; they run where the module is."""
        return tuple(PlacedNode(name="", operator=kind, provider=self.provider) for kind in operators(self._module.inlined_graph))


class AotiRunner:
    """A variant that AOTInductor compiled, loaded as the workers do it: without the compiler, in milliseconds."""

    def __init__(self, path: Path, signature: Signature) -> None:
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self.wanted_provider = "cpu"
        self.provider = str(self._loader.get_metadata()["AOTI_DEVICE_KEY"])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `VariantRunner.run`."""
        with torch.inference_mode():
            tensors = self._loader.run([torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs])
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}


def open_variant(directory: Path, signature: Signature, *, target: Target = "cpu") -> VariantRunner:
    """Load the variant in a directory for a device. Raises whatever the runtime raises, FileNotFoundError if there is no model."""
    if (directory / ONNX_FILE).is_file():
        if target == "cuda":
            return OnnxRunner(directory / ONNX_FILE, signature, wanted_provider=CUDA, device="cuda")
        return OnnxRunner(directory / ONNX_FILE, signature)
    if (directory / TORCHSCRIPT_FILE).is_file():
        return TorchScriptRunner(directory / TORCHSCRIPT_FILE, signature, device=target)
    if (directory / AOTI_FILE).is_file():
        return AotiRunner(directory / AOTI_FILE, signature)
    raise FileNotFoundError(f"no {ONNX_FILE}, {TORCHSCRIPT_FILE} or {AOTI_FILE} in {directory}")
