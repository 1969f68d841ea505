"""Variant `onnx-int8-static`: weights and activations in 8 bits, ranges measured on training rows.

Quantize/dequantize pairs (QDQ), one scale per channel, made by ONNX Runtime after its shape inference and fusion.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # type: ignore[import-untyped]
from torch import nn

from training.data.batches import Rows
from training.export.exporter import ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import graph_facts
from training.export.onnx_quantized import HEAVY, advice_hidden, count_quantized, prepared_graph, quantized_nodes_check, weights_check

_CALIBRATION_BATCH = 32


class OnnxInt8Static:
    """Static QDQ int8 for CPUs.

    Weights use 7 of their 8 bits (`reduce_range`): without VNNI instructions the CPU adds pairs of products in 16 bits, which
    saturate, and a bundle does not know on which CPU it will run.
    """

    name = "onnx-int8-static"
    # Parity of 8 bits is a matter of agreement, accuracy and the mean. One row with activations beyond the calibrated range
    # is clipped and may be far off: measured on digits of 15 seeds and widths, 0.03 to 0.21 at most and 0.001 to 0.003 on average.
    limits: Limits = Limits(max_error=0.25, mean_error=0.01, row_error=0.01, min_agreement=0.97)

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """On CUDA 8 bits are slow or missing."""
        return None if context.target == "cpu" else "8 bits are slow or missing on CUDA"

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.onnx`."""
        with advice_hidden():
            quantize_static(
                prepared_graph(model, context),
                into / ONNX_FILE,
                _Calibration(context.calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Checks that the graph is quantized, and that its weights are those of the model, rounded."""
        graph = onnx.load(directory / ONNX_FILE)
        prepared = onnx.load(prepared_graph(model, context))
        num_heavy = sum(node.op_type in HEAVY for node in prepared.graph.node)
        num_quantized = count_quantized(graph)
        checks = (quantized_nodes_check(num_quantized, num_heavy, "/".join(HEAVY)), weights_check(graph, prepared))
        facts = {**graph_facts(directory / ONNX_FILE), "calibration_rows": len(context.calibration), "quantized_nodes": num_quantized}
        return Inspection(checks=checks, facts=facts)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Training rows in batches, as the calibrator reads them."""

    def __init__(self, rows: Rows) -> None:
        self._batches: Iterator[dict[str, Any]] = (
            rows.take(slice(start, start + _CALIBRATION_BATCH)) for start in range(0, len(rows), _CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None at the end."""
        return next(self._batches, None)
