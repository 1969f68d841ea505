"""Whether the ranges that a quantized graph gives its activations fit what really flows through the float32 graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from training.data.batches import Array
from training.export.onnx_session import answers


def clipped_share(graph: onnx.ModelProto, prepared: Path, inputs: Mapping[str, Array]) -> tuple[float, str]:
    """The largest share of a tensor's values that lie beyond its range, and that tensor; (0, "") if no activation is quantized.

    Args:
        graph: The quantized graph. Its QuantizeLinear nodes read tensors that have the same names in the float32 graph.
        prepared: The float32 graph.
        inputs: Rows to ask it.
    """
    ranges = _ranges(graph)
    original = onnx.load(prepared)
    known = {name for node in original.graph.node for name in node.output} | set(inputs)
    ranges = {name: bounds for name, bounds in ranges.items() if name in known}
    if not ranges:
        return 0.0, ""
    del original.graph.output[:]
    original.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ranges)
    found = answers(original, inputs)
    shares = {}
    for (name, (low, high)), values in zip(ranges.items(), found, strict=True):
        half_step = (high - low) / 255 / 2
        shares[name] = float(np.mean((values < low - half_step) | (values > high + half_step)))
    worst = max(shares, key=lambda name: shares[name])
    return shares[worst], worst


def _ranges(graph: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in tensors and node.input[1] in tensors:
            scale = float(tensors[node.input[1]])
            zero = tensors[node.input[2]]
            kind = np.iinfo(zero.dtype)
            found[node.input[0]] = ((kind.min - float(zero)) * scale, (kind.max - float(zero)) * scale)
    return found
