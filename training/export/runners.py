"""Variants as they run in production: loaded from the files in their directory, called with named arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch

from registry.signature import Signature
from training.data.batches import Array
from training.export.exporter import ONNX_FILE, TORCHSCRIPT_FILE
from training.export.onnx_graph import float_makers
from training.export.placement import PlacedNode

CPU = "CPUExecutionProvider"
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
    """A variant in ONNX Runtime."""

    def __init__(self, path: Path, signature: Signature, *, wanted_provider: str = CPU) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = NUM_THREADS
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._path = path
        self.wanted_provider = wanted_provider
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[wanted_provider])
        self._outputs = [spec.name for spec in signature.outputs]

    @property
    def provider(self) -> str:
        """The first provider of the session: ONNX Runtime falls back to the CPU without a word."""
        return str(self._session.get_providers()[0])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `VariantRunner.run`."""
        answers = self._session.run(self._outputs, {name: np.ascontiguousarray(array) for name, array in inputs.items()})
        return dict(zip(self._outputs, answers, strict=True))

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

    def __init__(self, path: Path, signature: Signature) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is deprecated.*", category=DeprecationWarning)
            self._module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self.provider = self.wanted_provider = "cpu"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `VariantRunner.run`."""
        with torch.inference_mode():
            answer = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs))
        tensors = (answer,) if isinstance(answer, torch.Tensor) else answer
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def placement(self) -> tuple[PlacedNode, ...] | None:
        """Every operator of the graph and its blocks; they run where the module is."""
        return tuple(PlacedNode(name="", operator=kind, provider=self.provider) for kind in _operators(self._module.inlined_graph))


def _operators(block: Any) -> Iterator[str]:
    for node in block.nodes():
        if not str(node.kind()).startswith("prim::"):
            yield str(node.kind())
        for inner in node.blocks():
            yield from _operators(inner)


def open_variant(directory: Path, signature: Signature) -> VariantRunner:
    """Load the variant that lies in a directory. Raises whatever the runtime raises, FileNotFoundError if there is no model."""
    if (directory / ONNX_FILE).is_file():
        return OnnxRunner(directory / ONNX_FILE, signature)
    if (directory / TORCHSCRIPT_FILE).is_file():
        return TorchScriptRunner(directory / TORCHSCRIPT_FILE, signature)
    raise FileNotFoundError(f"no {ONNX_FILE} or {TORCHSCRIPT_FILE} in {directory}")
