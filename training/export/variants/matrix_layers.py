"""Which weights of a model are matrices that data is multiplied by: tells whether a quantizer fits, before anything is exported."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

from training.export.exporter import ExportContext

_RECURRENT = ("LSTM",)
_NOT_PRODUCTS = ("Embedding", "EmbeddingBag", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def product_shapes(model: nn.Module, context: ExportContext, *, recurrent: bool) -> tuple[tuple[int, int], ...]:
    """Shapes of the matrices; from the given ONNX graph where there is one, else from the module's parameters.

    A parameter with two dimensions is taken for such a matrix unless its layer looks rows up or steps through time in another way.

    Args:
        recurrent: Whether those inside an LSTM count.
    """
    if context.given_graph is not None:
        return _of_graph(context.given_graph, recurrent)
    found = []
    for module in model.modules():
        kind = module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__
        if kind in _NOT_PRODUCTS or (kind in _RECURRENT and not recurrent):
            continue
        found += [(weight.shape[0], weight.shape[1]) for weight in module.parameters(recurse=False) if weight.ndim == 2]
    return tuple(found)


def _of_graph(path: Path, recurrent: bool) -> tuple[tuple[int, int], ...]:
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants = (node for node in graph.node if node.op_type == "Constant")
    shapes |= {node.output[0]: tuple(value.t.dims) for node in constants for value in node.attribute if value.name == "value"}
    found = []
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            weights = [shapes.get(node.input[1], ())]
        elif node.op_type == "LSTM" and recurrent:
            weights = [shapes.get(name, ()) for name in node.input[1:3]]
        else:
            continue
        found += [(shape[-2], shape[-1]) for shape in weights if len(shape) >= 2]
    return tuple(found)
