"""Variant `onnx-int8-static`: weights and activations in 8 bits, ranges measured on training rows.

Quantize/dequantize pairs (QDQ), one scale per channel, made by ONNX Runtime after its shape inference and fusion.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # type: ignore[import-untyped]
from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]
from torch import nn

from registry.certificate import Check
from training.data.batches import Array, Rows
from training.export.exporter import ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import fp32_graph, graph_facts

_CALIBRATION_BATCH = 32
_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # where the time goes, so what quantizing is for
_MIN_QUANTIZED_SHARE = 0.5
# Rounding moves a weight by half a step; clipping at the end of the range by another half.
_MAX_WEIGHT_STEPS = 1.01


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
        with _advice_hidden():
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
        num_heavy = sum(node.op_type in _HEAVY for node in prepared.graph.node)
        num_quantized = count_quantized(graph)
        least = max(1, round(_MIN_QUANTIZED_SHARE * num_heavy))
        steps = weight_error_steps(graph, prepared)
        checks = (
            Check(
                name="quantized_nodes",
                passed=num_quantized >= least,
                value=num_quantized,
                limit=least,
                relation=">=",
                detail=f"of {num_heavy} {'/'.join(_HEAVY)} nodes",
            ),
            Check(
                name="weights/max_error_steps",
                passed=steps <= _MAX_WEIGHT_STEPS,
                value=steps,
                limit=_MAX_WEIGHT_STEPS,
                detail="difference to the float32 weights, in quantization steps",
            ),
        )
        facts = {**graph_facts(directory / ONNX_FILE), "calibration_rows": len(context.calibration), "quantized_nodes": num_quantized}
        return Inspection(checks=checks, facts=facts)


def prepared_graph(model: nn.Module, context: ExportContext) -> Path:
    """The float32 graph after ONNX Runtime's shape inference and fusion, made once per context."""
    path = context.scratch / "prepared" / ONNX_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _advice_hidden():
            quant_pre_process(fp32_graph(model, context), path)
    return path


def count_quantized(graph: onnx.ModelProto) -> int:
    """Number of heavy nodes whose data and weight both come dequantized: those that run on integers."""
    dequantized = {output for node in graph.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return sum(node.op_type in _HEAVY and set(node.input[:2]) <= dequantized for node in graph.graph.node)


def weight_error_steps(graph: onnx.ModelProto, prepared: onnx.ModelProto) -> float:
    """How far the weights of a quantized graph are from those of the float32 graph, at most, in quantization steps.

    Weights left in float32 must be equal. A weight that is not in the float32 graph, or is lost, makes it infinite.
    """
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.graph.initializer}
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    steps = 0.0
    seen = set()
    for name, value in found.items():
        if name in originals:
            seen.add(name)
            steps = max(steps, 0.0 if np.array_equal(value, originals[name]) else float("inf"))
    for node in graph.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in found:
            continue
        name = node.input[0].removesuffix("_quantized")
        original = originals.get(name)
        if original is None or original.shape != found[node.input[0]].shape:
            return float("inf")
        seen.add(name)
        steps = max(steps, _steps(node, found, original))
    return steps if seen == set(originals) else float("inf")


def _steps(node: onnx.NodeProto, tensors: Mapping[str, Array], original: Array) -> float:
    quantized, scale = tensors[node.input[0]].astype(np.float64), tensors[node.input[1]].astype(np.float64)
    zero = tensors[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros_like(scale)
    if scale.ndim == 1 and scale.size > 1:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [1] * quantized.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return float("inf")
    return float(np.abs((quantized - zero) - original / scale).max(initial=0))


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Training rows in batches, as the calibrator reads them."""

    def __init__(self, rows: Rows) -> None:
        self._batches: Iterator[dict[str, Any]] = (
            rows.take(slice(start, start + _CALIBRATION_BATCH)) for start in range(0, len(rows), _CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None at the end."""
        return next(self._batches, None)


@contextmanager
def _advice_hidden() -> Iterator[None]:
    # onnxruntime advises through the root logger to preprocess, also when that is what is being done.
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
