"""Variant `onnx-int8-dynamic`: weights of matrix products in 8 bits, ranges of activations taken while it runs.

For models that are mostly matrix products and LSTMs, and for which there is nothing good to calibrate on.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
from torch import nn

from training.export.exporter import ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import graph_facts
from training.export.quantization.onnx_quantized import constant_products, matmul_graph, quantized_nodes_check, weights_check
from training.export.variants.matrix_layers import product_shapes
from training.quiet import errors_only

_KINDS = ("MatMul", "LSTM")  # Gemm nodes are MatMul and Add by then; a convolution of integers with ranges on the fly is slower than floats
_QUANTIZED = ("MatMulInteger", "DynamicQuantizeLSTM")


class OnnxInt8Dynamic:
    """Dynamic int8 for CPUs: per channel, 7 of 8 bits (see `OnnxInt8Static`)."""

    name = "onnx-int8-dynamic"
    # The range of an activation is that of the whole batch, so a row's answer depends a little on the rows beside it: row_error.
    # Measured: an LSTM and a perceptron 0.015 at most, 0.003 on average, rows 0.01. all-MiniLM-L6-v2 has
    # activations with outliers, gets to 0.46 at most with rows at 0.13, and is refused, as it should be: cosine 0.90 in the worst row.
    limits: Limits = Limits(max_error=0.25, mean_error=0.02, row_error=0.05, min_agreement=0.97, follows_budget=True)

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """On CUDA 8 bits are slow or missing; a model without matrix products has nothing to quantize."""
        if context.target != "cpu":
            return "8 bits are slow or missing on CUDA"
        return None if product_shapes(model, context, recurrent=True) else "the model has no matrix products or LSTMs"

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.onnx`."""
        source = matmul_graph(model, context)
        with errors_only():  # onnxruntime advises through the root logger
            quantize_dynamic(
                source,
                into / ONNX_FILE,
                op_types_to_quantize=list(_KINDS),
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.with_name(f"{ONNX_FILE}.data").exists(),
            )

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Checks that the graph is quantized, and that its weights are those of the model, rounded."""
        graph, original = onnx.load(directory / ONNX_FILE), onnx.load(matmul_graph(model, context))
        num_possible = len(constant_products(original)) + sum(node.op_type == "LSTM" for node in original.graph.node)
        num_quantized = sum(node.op_type in _QUANTIZED for node in graph.graph.node)
        checks = (quantized_nodes_check(num_quantized, num_possible, "MatMul/LSTM"), weights_check(graph, original))
        return Inspection(checks=checks, facts={**graph_facts(directory / ONNX_FILE), "quantized_nodes": num_quantized})
