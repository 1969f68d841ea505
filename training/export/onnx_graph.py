"""ONNX graphs of a model: made by torch.onnx, cleaned, saved, counted. The one file of training that edits ONNX."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from registry.signature import TensorSpec
from training.export.exporter import EXTERNAL_DATA_BYTES, ONNX_FILE, ExportContext
from training.interface import Inference, evaluating
from training.quiet import errors_only, treespec_notice_hidden

BATCH = "batch"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def fp32_graph(model: nn.Module, context: ExportContext) -> Path:
    """The model as a float32 ONNX graph with a free batch dimension, made once per context; its file in the scratch directory.

    A version that was imported as an ONNX file has its graph already: it is copied, its external data included.
    """
    path = context.scratch / "fp32" / ONNX_FILE
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if context.given_graph is not None:
        for file in context.given_graph.parent.glob(f"{context.given_graph.name}*"):
            shutil.copyfile(file, path.parent / file.name)
    elif isinstance(model, torch.jit.ScriptModule):
        save_graph(_export_script(model, context), path, external_data_bytes=context.external_data_bytes)
    else:
        _export(model, context, path)
    return path


def save_graph(graph: onnx.ModelProto, path: Path, *, external_data_bytes: int = EXTERNAL_DATA_BYTES) -> None:
    """Write a graph; its weights into `<name>.data` beside it if they are too large for one file."""
    large = graph.ByteSize() > external_data_bytes
    onnx.save(graph, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def graph_facts(path: Path) -> dict[str, Any]:
    """Opset, operator counts and size in bytes of a graph."""
    graph = onnx.load(path, load_external_data=False)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import},
        "operators": dict(sorted(Counter(node.op_type for node in graph.graph.node).items())),
        "onnx": onnx.__version__,
        "torch": torch.__version__,
    }


def float_makers(path: Path) -> frozenset[str]:
    """Names of the nodes of a graph of which some output is floating-point."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    return frozenset(node.name for node in graph.node if node.name and any(kinds.get(name) in _FLOATS for name in node.output))


def _export(model: nn.Module, context: ExportContext, path: Path) -> None:
    """Write the graph. Large weights go from the module's memory to their file, and are in no second place in between."""
    shapes = tuple(dict.fromkeys(free_dimensions(spec), torch.export.Dim.DYNAMIC) for spec in context.signature.inputs)
    with evaluating(model), errors_only("torch.onnx"), treespec_notice_hidden():  # it reports that torchvision is not installed
        program = torch.onnx.export(
            Inference(model),
            tuple(context.example.values()),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[spec.name for spec in context.signature.inputs],
            output_names=[spec.name for spec in context.signature.outputs],
            verbose=False,
        )
    assert program is not None
    # The exporter names inner values after operators and modules, and gives an output the same name without a look.
    ends = {spec.name for spec in context.signature.outputs}
    for value in (value for node in program.model.graph for value in node.outputs):
        if value.name in ends and not value.is_graph_output():
            value.name = f"{value.name}/inner"
    large = _weights_bytes(model) > context.external_data_bytes
    if large:
        program.save(path, external_data=True)  # `model.onnx.data`, which the graph names
        del program
        graph = onnx.load(path, load_external_data=False)
    else:
        graph = program.model_proto
    _clean(graph)
    if not large:
        onnx.checker.check_model(graph)
    onnx.save(graph, path)
    if large:
        onnx.checker.check_model(path)  # looks for the weights beside the file


def _weights_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _export_script(model: torch.jit.ScriptModule, context: ExportContext) -> onnx.ModelProto:
    """By the exporter that reads TorchScript; torch.export does not."""
    specs = (*context.signature.inputs, *context.signature.outputs)
    written = context.scratch / "scripted.onnx"
    torch._C._jit_set_onnx_log_output_stream("stderr")  # what it prints when it fails is not a command's result
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # upstream deprecates it; a TorchScript file has no other way
        warnings.filterwarnings("ignore", category=UserWarning)  # and remarks on each operator that it folds
        torch.onnx.export(
            model,
            tuple(context.example.values()),
            str(written),
            dynamo=False,
            input_names=[spec.name for spec in context.signature.inputs],
            output_names=[spec.name for spec in context.signature.outputs],
            dynamic_axes={spec.name: {d: f"{spec.name}_{d}" if d else BATCH for d in free_dimensions(spec)} for spec in specs},
        )
    graph = onnx.load(written)
    _clean(graph)
    onnx.checker.check_model(graph)
    return graph


def free_dimensions(spec: TensorSpec) -> tuple[int, ...]:
    """Numbers of the dimensions that may have any size; the batch is 0."""
    return tuple(dimension for dimension, size in enumerate(spec.shape) if size == -1)


def _clean(graph: onnx.ModelProto) -> None:
    """Name the batch dimension, and drop the notes of the exporter: they hold stack traces with this machine's paths."""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    symbol = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]:
        del value.metadata_props[:]
        for dimension in value.type.tensor_type.shape.dim:
            if symbol and dimension.dim_param == symbol:
                dimension.dim_param = BATCH
    for tensor in graph.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
