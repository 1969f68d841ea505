"""Variant `onnx-fp16`: the graph in half precision for ONNX Runtime on a GPU. Inputs and outputs stay float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]
from torch import nn

from registry.certificate import Check
from training.export.exporter import FP16_LIMITS, ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import fp32_graph, graph_facts, save_graph
from training.quiet import errors_only

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = 5.96e-8  # the smallest subnormal; the converter lifts smaller weights up to it


class OnnxFp16:
    """ONNX in float16."""

    name = "onnx-fp16"
    limits: Limits = FP16_LIMITS

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """For GPUs."""
        return None if context.target == "cuda" else "float16 is for GPUs; ONNX Runtime computes it in float32 on a CPU"

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.onnx`, converted from the float32 graph. Operators that need float32 keep it, between casts."""
        graph = onnx.load(fp32_graph(model, context))
        with errors_only("onnxruntime.transformers.float16"):  # it names each weight that it rounds
            half = convert_float_to_float16(
                graph, min_positive_val=_SMALLEST, max_finite_val=_LARGEST, keep_io_types=True, disable_shape_infer=True
            )
        save_graph(half, into / ONNX_FILE, external_data_bytes=context.external_data_bytes)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Float16 weights that are the float32 graph's, rounded; at least one, or nothing was converted."""
        path = directory / ONNX_FILE
        original = _weights(onnx.load(fp32_graph(model, context)))
        converted = _weights(onnx.load(path))
        half = {name: weight for name, weight in converted.items() if weight.dtype == np.float16}
        wrong = [name for name, weight in half.items() if name not in original or not _is_rounded(weight, original[name])]
        beyond = [name for name, weight in original.items() if weight.dtype == np.float32 and np.abs(weight).max(initial=0.0) > _LARGEST]
        borders = _wrong_borders(onnx.load(path, load_external_data=False), context)
        checks = (
            Check(name="precision/num_float16_weights", passed=bool(half), value=len(half), limit=1, relation=">="),
            _none("precision/num_wrongly_rounded", wrong),
            _none("precision/num_beyond_float16", beyond),
            _none("precision/num_inputs_outputs_changed", borders),
        )
        single = sum(weight.dtype == np.float32 for weight in converted.values())
        facts: dict[str, Any] = {**graph_facts(path), "num_float16_weights": len(half), "num_float32_weights": single}
        return Inspection(checks=checks, facts=facts)


def _none(name: str, found: list[str]) -> Check:
    return Check(name=name, passed=not found, value=len(found), limit=0, detail=", ".join(found[:20]))


def _weights(graph: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """The graph's weights by name; those of nodes of kind Constant by their output."""
    found = {tensor.name: tensor for tensor in graph.graph.initializer}
    found |= {
        node.output[0]: attribute.t
        for node in graph.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def _is_rounded(half: np.ndarray[Any, Any], single: np.ndarray[Any, Any]) -> bool:
    """Whether values are the nearest float16 ones; those below the smallest one may be it instead of zero."""
    if half.shape != single.shape:
        return False
    nearest = np.clip(single, -_LARGEST, _LARGEST).astype(np.float16)  # what is beyond is another check's
    return bool(np.all((half == nearest) | (np.abs(single) <= _SMALLEST)))


def _wrong_borders(graph: onnx.ModelProto, context: ExportContext) -> list[str]:
    """Inputs and outputs that have become float16 though the signature says otherwise."""
    half = {v.name for v in [*graph.graph.input, *graph.graph.output] if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    return [spec.name for spec in (*context.signature.inputs, *context.signature.outputs) if spec.name in half and spec.datatype != "FP16"]
