"""TorchServe as one serving node: its configuration, its process, and the adapter to its APIs."""

from serving.torchserve.config import TorchServeConfig
from serving.torchserve.launch import prepare, process
from serving.torchserve.node import TorchServeNode

__all__ = ["TorchServeConfig", "TorchServeNode", "prepare", "process"]
