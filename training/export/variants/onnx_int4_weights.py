"""Variant `onnx-int4-weights`: the weights of large matrix products in 4 bits, in blocks of 32 with a scale and a zero point each.

A transformer reads more weights than it computes with them, so a quarter of the bytes is the gain; activations stay in float32.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#quantize-to-int4uint4
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from training.export.exporter import ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import graph_facts, save_graph
from training.export.quantization.onnx_quantized import constant_products, matmul_graph, quantized_nodes_check, weights_check
from training.export.variants.matrix_layers import product_shapes

_BLOCK = 32
_MIN_SIDE = 256
_MIN_WEIGHTS = 1_000_000


class OnnxInt4Weights:
    """Weights of 4 bits, for ONNX Runtime."""

    name = "onnx-int4-weights"
    # Measured as fractions of the output's largest value: all-MiniLM-L6-v2 on 64 sentences 0.135 at most and 0.022 on average; untrained
    # networks of 512-1024-1024-10 and 768-768-768-4 on noise, the worst case of rounding, 0.08 and 0.016. Limits are about twice that;
    # whether a user would notice is for the accuracy budget to say. Activations are not rounded, so rows differ as in float32 (2e-7).
    # MatMulNBits can also compute in 8 bits (accuracy_level 4): the same errors, and half the speed at batch 32 on a Xeon with VNNI.
    limits: Limits = Limits(max_error=0.3, mean_error=0.05, row_error=1e-4, min_agreement=0.95, follows_budget=True)

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """Fits models with a million weights or more in matrices of 256 x 256 and larger."""
        num_weights = sum(rows * columns for rows, columns in product_shapes(model, context, recurrent=False) if _is_large(rows, columns))
        if num_weights >= _MIN_WEIGHTS:
            return None
        return f"{num_weights} weights are in matrices of {_MIN_SIDE} x {_MIN_SIDE} or larger, and 4 bits pay from {_MIN_WEIGHTS} on"

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.onnx`. Smaller matrices stay in float32: they are few bytes, and often the last layer."""
        graph = onnx.load(matmul_graph(model, context))
        chosen = {node.name for node in _large_products(graph)}
        others = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.name not in chosen]
        with _logging_kept():
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-untyped]  # noqa: PLC0415

            quantizer = MatMulNBitsQuantizer(graph, bits=4, block_size=_BLOCK, is_symmetric=False, nodes_to_exclude=others)
            quantizer.process()
        save_graph(quantizer.model.model, into / ONNX_FILE)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Checks that the graph is quantized, and that its weights are those of the model, rounded."""
        graph, original = onnx.load(directory / ONNX_FILE), onnx.load(matmul_graph(model, context))
        num_quantized = sum(node.op_type == "MatMulNBits" for node in graph.graph.node)
        checks = (quantized_nodes_check(num_quantized, len(_large_products(original)), "large MatMul"), weights_check(graph, original))
        facts: dict[str, Any] = {**graph_facts(directory / ONNX_FILE), "quantized_nodes": num_quantized, "block_size": _BLOCK}
        return Inspection(checks=checks, facts=facts)


def _is_large(rows: int, columns: int) -> bool:
    return min(rows, columns) >= _MIN_SIDE


def _large_products(graph: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    products = constant_products(graph)
    return tuple(node for node in products if len(shapes[node.input[1]]) == 2 and _is_large(*shapes[node.input[1]]))


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Upstream sets up the root logger when it is imported, and reports each node to it."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.addHandler(quiet := logging.NullHandler())  # with a handler there, basicConfig does nothing
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.removeHandler(quiet)
        root.setLevel(level)
        root.handlers[:] = handlers
