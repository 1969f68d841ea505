"""Files of foreign engines as modules that an export can hold variants against."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import nn


class OnnxModule(nn.Module):
    """An ONNX file, run by ONNX Runtime on the CPU as it is, without graph optimizations: the reference, not a variant.

    Args:
        path: The file; its external data beside it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_names = [node.name for node in self._session.get_inputs()]
        self.output_names = [node.name for node in self._session.get_outputs()]
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs by the graph's names for inputs in the graph's order."""
        feeds = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(self.input_names, inputs, strict=True)}
        answers = self._session.run(self.output_names, feeds)
        return {name: torch.from_numpy(np.array(answer)) for name, answer in zip(self.output_names, answers, strict=True)}


class ProgramModule(nn.Module):
    """A torch.export program as a module with modes: its own graph module refuses `eval()`.

    Args:
        path: A `.pt2` file whose digest the caller has verified: torch.load's safety is not torch.export.load's.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.graph = torch.export.load(path).module()
        self.training = False

    def forward(self, *inputs: torch.Tensor) -> object:
        """The program's own answer."""
        return self.graph(*inputs)

    def train(self, mode: bool = True) -> ProgramModule:
        """A program is captured in evaluation mode, and stays so. Raises ValueError for another mode."""
        if mode:
            raise ValueError("a torch.export program cannot be trained")
        return self


def load_torchscript(path: Path) -> nn.Module:
    """A TorchScript file on the CPU, in evaluation mode. Raises RuntimeError for a broken one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is deprecated.*", category=DeprecationWarning)
        module: nn.Module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    return module
