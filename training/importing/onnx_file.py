"""An ONNX file as a source: checked, its face changed where asked, its external data beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from registry.errors import UsageError
from training.export.onnx_graph import save_graph
from training.importing.brought import Brought
from training.importing.request import ImportRequest, Normalization
from training.importing.sample import Sample, in_order
from training.source.imported import model_file

_FREE_BATCH = "Export it again with a free first dimension (dynamic_shapes, or dynamic_axes), or name the batch with --batch-axis."


def bring_onnx(request: ImportRequest, sample: Sample, into: Path) -> Brought:
    """Check the file and write it as `model.onnx`, with `model.onnx.data` beside it if it is too large for one file.

    Raises:
        UsageError: Not an ONNX file, data of it are missing, a batch dimension is fixed, or the sample has other inputs.
    """
    graph = read_onnx(request.file)
    adapt_graph(graph, request, {name: array.dtype for name, array in sample.inputs.items()})
    names = tuple(value.name for value in _inputs(graph))
    inputs = in_order(sample, names, what=request.file.name)
    for value in _inputs(graph):
        _check_input(value, inputs[value.name].dtype, request.export.dynamic.get(value.name, ()))
    target = model_file(into, "onnx")
    save_graph(graph, target)
    _check(target)
    opset = {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import}
    return Brought(kind="onnx", inputs=inputs, facts={"opset": opset, "ir_version": graph.ir_version, "producer": graph.producer_name})


def read_onnx(file: Path) -> onnx.ModelProto:
    """The graph with its weights, external ones read from beside it.

    Raises:
        UsageError: Not an ONNX file, an operator or a type in it is wrong, or external data are missing or lie elsewhere.
    """
    _check(file)
    graph = onnx.load(file, load_external_data=False)
    for tensor in graph.graph.initializer:
        if uses_external_data(tensor):
            _check_external(tensor, file)
    try:
        load_external_data_for_model(graph, str(file.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise UsageError(f"external data of the graph cannot be read ({file}: {error})", "Keep its data file beside it.") from error
    return graph


def adapt_graph(graph: onnx.ModelProto, request: ImportRequest, dtypes: dict[str, np.dtype[Any]]) -> None:
    """Bind constants, move the batch to the front, put normalization before the inputs and rename the outputs, in place.

    Args:
        dtypes: Input -> dtype in which the endpoint takes it, for those that are normalized.

    Raises:
        UsageError: An input or output that is named is not there.
    """
    how = request.adaptation
    known = {value.name for value in _inputs(graph)}
    for option, names in (("--fix", how.fixed), ("--normalize", how.normalize)):
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{option} names an input that the graph does not have ({name})", f"Its inputs are {', '.join(sorted(known))}."
                )
    for name, value in how.fixed.items():
        _bind(graph, name, value)
    if request.export.outputs is not None:
        _rename_outputs(graph, request.export.outputs)
    ends = {value.name for value in (*_inputs(graph), *graph.graph.output)}
    for name, axis in how.batch_axes.items():
        if name not in ends:
            raise UsageError(f"--batch-axis names neither an input nor an output ({name})", f"There are {', '.join(sorted(ends))}.")
        _move_batch(graph, name, axis)
    for name, normalization in how.normalize.items():
        _normalize(graph, name, normalization, dtypes.get(name, np.dtype(np.float32)))


def _check(file: Path) -> None:
    try:
        onnx.checker.check_model(str(file))
    except Exception as error:  # protobuf and onnx each have errors of their own
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"not a valid ONNX file ({file}: {reason})", "Export it again; its external data must lie beside it.") from error


def _check_external(tensor: TensorProto, file: Path) -> None:
    """That external data are long enough: not every onnx says so. That they are plain files beside the graph, its checker has seen."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = file.parent / entries.get("location", "")
    needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    if path.stat().st_size < needed:
        raise UsageError(
            f"external data of the graph are cut off ({path.name}: {path.stat().st_size} bytes, {needed} needed)", "Copy it again."
        )


def _check_input(value: onnx.ValueInfoProto, dtype: np.dtype[Any], dynamic: Iterable[int]) -> None:
    wanted = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if wanted != dtype:
        raise UsageError(f"the sample's array {value.name} has another type than the graph's input ({dtype}, {wanted})", "Convert it.")
    sizes = value.type.tensor_type.shape.dim
    for dimension in (0, *dynamic):
        if dimension < len(sizes) and sizes[dimension].dim_value > 0:
            what = "batch dimension" if dimension == 0 else f"dimension {dimension}"
            raise UsageError(f"the {what} of input {value.name} is fixed ({sizes[dimension].dim_value})", _FREE_BATCH)
    if not sizes:
        raise UsageError(f"input {value.name} has no batch dimension (a scalar)", f"Bind it with --fix {value.name}=VALUE.")


def _inputs(graph: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs. Old files list their weights among them."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [value for value in graph.graph.input if value.name not in weights]


def _bind(graph: onnx.ModelProto, name: str, value: Any) -> None:
    given = next(entry for entry in _inputs(graph) if entry.name == name)
    tensor = given.type.tensor_type
    array = np.asarray(value, dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    sizes = [dimension.dim_value or 1 for dimension in tensor.shape.dim]
    graph.graph.input.remove(given)
    graph.graph.initializer.append(numpy_helper.from_array(np.broadcast_to(array, sizes).copy(), name))


def _rename_outputs(graph: onnx.ModelProto, names: tuple[str, ...]) -> None:
    if len(names) != len(graph.graph.output):
        raise UsageError(f"the graph has {len(graph.graph.output)} outputs, --outputs names {len(names)}", "Name each one.")
    for value, name in zip(graph.graph.output, names, strict=True):
        if value.name != name:
            _rename(graph.graph, value.name, name)
            value.name = name


def _move_batch(graph: onnx.ModelProto, name: str, axis: int) -> None:
    """Dimension `axis` of an end of the graph becomes its first; a Transpose inside moves it back."""
    value = next(entry for entry in (*graph.graph.input, *graph.graph.output) if entry.name == name)
    sizes = list(value.type.tensor_type.shape.dim)
    if not 0 <= axis < len(sizes):
        raise UsageError(f"{name} has no dimension {axis} ({len(sizes)} dimensions)", "Dimensions count from 0.")
    order = [axis, *(i for i in range(len(sizes)) if i != axis)]  # of the endpoint's tensor, in the model's dimensions
    back = [order.index(i) for i in range(len(order))]
    inner = f"{name}/inner"
    is_input = any(entry.name == name for entry in graph.graph.input)
    _rename(graph.graph, name, inner)
    if is_input:
        graph.graph.node.insert(0, helper.make_node("Transpose", [name], [inner], name=f"{name}/batch", perm=back))
    else:
        graph.graph.node.append(helper.make_node("Transpose", [inner], [name], name=f"{name}/batch", perm=order))
    moved = [_copy(sizes[i]) for i in order]
    del value.type.tensor_type.shape.dim[:]
    value.type.tensor_type.shape.dim.extend(moved)


def _normalize(graph: onnx.ModelProto, name: str, how: Normalization, dtype: np.dtype[Any]) -> None:
    """`(x * scale - mean) / std` before the input, which takes `dtype` from now on."""
    value = next(entry for entry in _inputs(graph) if entry.name == name)
    rank = len(value.type.tensor_type.shape.dim)
    shape = [-1 if i == how.axis else 1 for i in range(rank)]
    inner, own = f"{name}/normalized", value.type.tensor_type.elem_type
    float_type = helper.tensor_dtype_to_np_dtype(own)
    _rename(graph.graph, name, inner)
    constants = {"scale": [how.scale], "mean": how.mean, "std": how.std}
    for key, numbers in constants.items():
        array = np.asarray(numbers, dtype=float_type)
        graph.graph.initializer.append(
            numpy_helper.from_array(array.reshape(shape) if array.size > 1 else array.reshape(()), f"{name}/{key}")
        )
    steps = [
        helper.make_node("Cast", [name], [f"{name}/float"], name=f"{name}/cast", to=own),
        helper.make_node("Mul", [f"{name}/float", f"{name}/scale"], [f"{name}/scaled"], name=f"{name}/mul"),
        helper.make_node("Sub", [f"{name}/scaled", f"{name}/mean"], [f"{name}/centred"], name=f"{name}/sub"),
        helper.make_node("Div", [f"{name}/centred", f"{name}/std"], [inner], name=f"{name}/div"),
    ]
    for step in reversed(steps):
        graph.graph.node.insert(0, step)
    value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value wherever it is made or used, also inside the branches of If and the bodies of Loop. Its declaration stays."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, old, new)
                for value in inner.output:  # a branch may hand out a value of the graph around it
                    if value.name == old:
                        value.name = new


def _copy(dimension: Any) -> Any:
    copied = type(dimension)()
    copied.CopyFrom(dimension)
    return copied
