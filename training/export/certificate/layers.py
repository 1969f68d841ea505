"""Where in a quantized graph the error comes from: each layer of the variant held against the same layer of the float32 graph.

For the reader, never a check: what counts is what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]

from training.data.batches import Array
from training.export.certificate.parity import mean_error, significant
from training.export.certificate.reference import peak

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")
_ACTIVATIONS = ("Relu", "Clip")
_DEQUANTIZED = "_DequantizeLinear_Output"  # as ONNX Runtime's quantizer names it
_MAX_FILE_BYTES = 400_000_000  # both graphs are held in memory
_NUM_ROWS = 4  # every layer's output is held at once


def layer_errors(variant: Path, original: Path, inputs: Mapping[str, Array]) -> dict[str, float | None]:
    """Layer (the name of its output) -> mean absolute error as a fraction of the layer's largest value, in the graph's order.

    Layers are those that both graphs name alike. Nothing for graphs with external data, which are large.

    Args:
        inputs: Rows for the first few of which the layers are compared.

    Raises:
        Exception: Whatever ONNX Runtime raises for a graph whose layers are outputs.
    """
    if any(path.stat().st_size > _MAX_FILE_BYTES or path.with_name(f"{path.name}.data").exists() for path in (variant, original)):
        return {}
    graphs = {path: onnx.load(path) for path in (variant, original)}
    pairs = _pairs(graphs[original].graph, graphs[variant].graph)
    if not pairs:
        return {}
    few = {name: array[:_NUM_ROWS] for name, array in inputs.items()}
    expected = _answers(graphs[original], list(pairs), few)
    found = _answers(graphs[variant], list(pairs.values()), few)
    return {name: significant(mean_error(found[same], expected[name]) / (peak(expected[name]) or 1.0)) for name, same in pairs.items()}


def _pairs(original: onnx.GraphProto, variant: onnx.GraphProto) -> dict[str, str]:
    """Output of a layer in the float32 graph -> the same value in the variant's: dequantized, where the quantizer rounds it.

    A quantizer drops the activation after a layer where rounding to its range does the same; then that activation's output is compared.
    """
    produced = {output for node in variant.node for output in node.output}
    activations = {node.input[0]: node.output[0] for node in original.node if node.op_type in _ACTIVATIONS}
    pairs = {}
    for node in original.node:
        if node.op_type not in _LAYERS:
            continue
        for name in filter(None, (node.output[0], activations.get(node.output[0]))):
            same = next((candidate for candidate in (f"{name}{_DEQUANTIZED}", name) if candidate in produced), None)
            if same is not None:
                pairs[name] = same
                break
    return pairs


def _answers(graph: onnx.ModelProto, layers: list[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    known = {output.name for output in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in layers if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused layers have no output of their own
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers = session.run(layers, {name: np.ascontiguousarray(array) for name, array in inputs.items()})
    return dict(zip(layers, answers, strict=True))
