"""What quantized ONNX graphs have in common: the float32 graphs they are made from, and proofs that weights are those, rounded.

A quantizer that did nothing reports success, and one wrong weight of a million moves no average. So the integers of a variant are
turned back into numbers and each is compared with the float32 weight, in units of its own quantization step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel  # type: ignore[import-untyped]
from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]
from torch import nn

from registry.certificate import Check
from training.data.batches import Array
from training.export.exporter import ONNX_FILE, ExportContext
from training.export.onnx_graph import fp32_graph, save_graph
from training.quiet import errors_only

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # where the time goes, so what quantizing is for
MIN_QUANTIZED_SHARE = 0.5
# Rounding moves a weight by half a step; clipping at the end of the range by another half.
MAX_WEIGHT_STEPS = 1.01


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedWeight:
    """One quantized weight of a graph.

    Attributes:
        tensor: Name of the integers in the graph.
        original: Name of the float32 tensor that they stand for.
        value: The numbers they mean, in the shape of the float32 tensor.
        step: Distance of neighbouring values; broadcasts against `value`.
    """

    tensor: str
    original: str
    value: Array
    step: Array


def prepared_graph(model: nn.Module, context: ExportContext) -> Path:
    """The float32 graph after ONNX Runtime's shape inference and fusion, made once per context."""
    path = context.scratch / "prepared" / ONNX_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        source = fp32_graph(model, context)
        large = source.with_name(f"{source.name}.data").exists()
        external: dict[str, Any] = {"save_as_external_data": large, "external_data_location": f"{path.name}.data" if large else None}
        # onnxruntime advises through the root logger to preprocess, also when that is what is being done. Where its symbolic shapes fail,
        # as on transformers in many ways, it leaves the graph in the working directory; ONNX's own inference goes over it anyway.
        with errors_only(), contextlib.chdir(path.parent):
            try:
                quant_pre_process(source.absolute(), path.absolute(), **external)
            except Exception:
                quant_pre_process(source.absolute(), path.absolute(), skip_symbolic_shape=True, **external)
        _name_nodes(path)
    return path


def _name_nodes(path: Path) -> None:
    """Quantizers choose nodes by name, and a graph made elsewhere may have nodes without one, or two with the same."""
    graph = onnx.load(path, load_external_data=False)
    names = [node.name for node in graph.graph.node]
    if all(names) and len(set(names)) == len(names):
        return
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.save(graph, path)


def matmul_graph(model: nn.Module, context: ExportContext) -> Path:
    """`prepared_graph` with its Gemm nodes as MatMul and Add, which is how weight quantizers want them; made once per context."""
    path = context.scratch / "matmul" / ONNX_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        graph = ONNXModel(onnx.load(prepared_graph(model, context)))
        graph.replace_gemm_with_matmul()
        used = {name for node in graph.model.graph.node for name in node.input}
        for tensor in [tensor for tensor in graph.model.graph.initializer if tensor.name not in used]:
            graph.model.graph.initializer.remove(tensor)  # the weights before they were transposed
        save_graph(graph.model, path)
    return path


def count_quantized(graph: onnx.ModelProto) -> int:
    """Number of heavy nodes whose data and weight both come dequantized: those that run on integers."""
    dequantized = {output for node in graph.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return sum(node.op_type in HEAVY and set(node.input[:2]) <= dequantized for node in graph.graph.node)


def constant_products(graph: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """The MatMul nodes of a graph whose second operand is a weight."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    return tuple(node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in constants)


def least_quantized(num_possible: int) -> int:
    """How many of the nodes that can be quantized must be: half, and one at least."""
    return max(1, round(MIN_QUANTIZED_SHARE * num_possible))


def quantized_nodes_check(num_quantized: int, num_possible: int, kinds: str) -> Check:
    """At least half of the nodes that can be quantized must be, and one at least."""
    least = least_quantized(num_possible)
    return Check(
        name="quantized_nodes",
        passed=num_quantized >= least,
        value=num_quantized,
        limit=least,
        relation=">=",
        detail=f"of {num_possible} {kinds} nodes",
    )


def weights_check(
    graph: onnx.ModelProto,
    original: onnx.ModelProto,
    *,
    name: str = "weights/max_error_steps",
    limit: float = MAX_WEIGHT_STEPS,
    detail: str = "difference to the float32 weights, in quantization steps",
) -> Check:
    """Every weight must be the original's, rounded."""
    steps = weight_error_steps(graph, original)
    return Check(name=name, passed=steps <= limit, value=steps, limit=limit, detail=detail)


def weight_error_steps(graph: onnx.ModelProto, original: onnx.ModelProto) -> float:
    """How far the weights of a quantized graph are from those of the float32 graph, at most, in quantization steps.

    Weights left in float32 must be equal. A weight that is not in the float32 graph, or is lost, makes it infinite. The bounds of a
    Clip (ReLU6) may be lost: where the range of the integers keeps them, the quantizer leaves the Clip out.
    """
    bounds = {name for node in original.graph.node if node.op_type == "Clip" for name in node.input[1:]}
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in original.graph.initializer}
    seen, steps = set(), 0.0
    for tensor in graph.graph.initializer:
        if tensor.name in originals:
            seen.add(tensor.name)
            steps = max(steps, 0.0 if np.array_equal(numpy_helper.to_array(tensor), originals[tensor.name]) else float("inf"))
    for weight in rounded_weights(graph):
        before = originals.get(weight.original)
        if before is None or before.shape != weight.value.shape or not (np.isfinite(weight.step).all() and (weight.step > 0).all()):
            return float("inf")
        seen.add(weight.original)
        error = (np.abs(weight.value - before) / weight.step).max(initial=0.0)
        steps = max(steps, float(error)) if np.isfinite(error) else float("inf")
    return steps if seen | bounds >= set(originals) else float("inf")


def rounded_weights(graph: onnx.ModelProto) -> Iterator[RoundedWeight]:
    """The quantized weights of a graph, turned back into numbers."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            yield _dequantized(node, tensors)
        elif node.op_type == "MatMulInteger" and node.input[1] in tensors:
            name = node.input[1].removesuffix("_quantized")
            yield _rounded(node.input[1], tensors[node.input[1]], tensors[f"{name}_scale"], tensors[node.input[3]])
        elif node.op_type == "DynamicQuantizeLSTM":
            # Inputs of the node: ONNX Runtime's ContribOperators.md. Its integers are [directions, in, 4 * hidden], ONNX's are turned.
            for weight, scale, zero in ((1, 8, 9), (2, 10, 11)):
                turned = tensors[node.input[weight]].transpose(0, 2, 1)
                yield _rounded(node.input[weight], turned, tensors[node.input[scale]][..., None], tensors[node.input[zero]][..., None])
        elif node.op_type == "MatMulNBits":
            yield _unpacked(node, tensors)


def _dequantized(node: onnx.NodeProto, tensors: Mapping[str, Array]) -> RoundedWeight:
    integers, scale = tensors[node.input[0]], tensors[node.input[1]]
    zero = tensors[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale)
    if scale.ndim == 1 and scale.size > 1:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return _rounded(node.input[0], integers, scale, zero)


def _rounded(tensor: str, integers: Array, scale: Array, zero: Array) -> RoundedWeight:
    step = scale.astype(np.float64)
    value = (integers.astype(np.float64) - zero.astype(np.float64)) * step
    return RoundedWeight(tensor=tensor, original=tensor.removesuffix("_quantized"), value=value, step=step)


def _unpacked(node: onnx.NodeProto, tensors: Mapping[str, Array]) -> RoundedWeight:
    """Weight [K, N] of a MatMulNBits node: two integers a byte, the low half first; blocks along K, padded to whole ones.

    Source: com.microsoft.MatMulNBits in ONNX Runtime's docs/ContribOperators.md.
    """
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    rows, columns, block = sizes["K"], sizes["N"], sizes["block_size"]
    num_blocks = -(-rows // block)
    integers = _nibbles(tensors[node.input[1]].reshape(columns, -1)).reshape(columns, num_blocks, block)
    scale = tensors[node.input[2]].reshape(columns, num_blocks, 1).astype(np.float64)
    zero = _nibbles(tensors[node.input[3]].reshape(columns, -1))[:, :num_blocks, None] if len(node.input) > 3 else np.uint8(8)
    value = ((integers.astype(np.float64) - zero.astype(np.float64)) * scale).reshape(columns, -1)[:, :rows].T
    step = np.broadcast_to(np.abs(scale), integers.shape).reshape(columns, -1)[:, :rows].T
    # A block of zeros has the scale 0: its values are exact, and any step will do.
    step = np.where(step == 0, 1.0, step)
    return RoundedWeight(tensor=node.input[1], original=node.input[1].removesuffix("_Q4"), value=value, step=step)


def _nibbles(packed: Array) -> Array:
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def set_notes(graph: onnx.ModelProto, notes: Mapping[str, str]) -> None:
    """Write what an exporter chose into the graph's own metadata, under `modelway.<key>`, in place of what was there."""
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {f"modelway.{key}": value for key, value in sorted(notes.items())})


def notes_of(graph: onnx.ModelProto) -> dict[str, str]:
    """What `set_notes` wrote."""
    return {entry.key.removeprefix("modelway."): entry.value for entry in graph.metadata_props if entry.key.startswith("modelway.")}
