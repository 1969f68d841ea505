"""Rounding weights up or down so that a layer's answers stay, not so that each weight stays.

Rounding to the nearest makes errors that add up over a layer's inputs. Here each weight is still rounded to one of its two
neighbours on the grid, but in turn, and the error of one is made up for by those that come after it, as far as the inputs of the
calibration rows go together; what remains on average is taken off the bias.
Sources: Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323 (the order of rounding, limited here to the two neighbours);
Nagel et al. 2019, "Data-Free Quantization", https://arxiv.org/abs/1906.04721, section 4.2 (correction of the bias).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from training.data.batches import Array
from training.export.onnx_graph import save_graph
from training.export.quantization.activation_statistics import Moments
from training.export.quantization.products import products

LARGEST = 64  # of the 7-bit integers that `reduce_range` leaves
_DAMPING = 0.03  # of the mean variance: inputs that hardly vary on the calibration rows may vary on others
_NOISE = 1e-4  # of the mean square: sums in float32 leave a variance of inputs that never vary, which may be negative
_BLOCK = 64


def rounded_graph(path: Path, moments: Mapping[str, Moments], into: Path, *, leave: Collection[str] = ()) -> None:
    """Write the float32 graph with its weights on the grid on which the quantizer will find them, and its biases corrected.

    Args:
        leave: Names of nodes that will not be quantized, so that they keep their weights.
    """
    graph = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    for product in products(graph.graph, arrays):
        if product.node in leave or product.node not in moments:
            continue
        stored, known = arrays[product.weight], moments[product.node]
        weight = product.as_matrices(stored).astype(np.float64)
        corrected = product.bias is not None
        on_grid = round_together(weight, known, centred=corrected)
        tensors[product.weight].CopyFrom(
            numpy_helper.from_array(product.as_stored(on_grid, stored.shape).astype(stored.dtype), product.weight)
        )
        if product.bias is not None:
            drift = ((on_grid - weight) * known.mean[:, None, :]).sum(axis=-1).reshape(-1)
            bias = arrays[product.bias]
            tensors[product.bias].CopyFrom(numpy_helper.from_array((bias - drift).astype(bias.dtype), product.bias))
    save_graph(graph, into)


def rounded_biases(graph: onnx.ModelProto, rounded: Path) -> onnx.ModelProto:
    """A float32 graph with the corrected biases of its rounded form, and its own weights: what a quantized graph is held against."""
    corrected = {tensor.name: tensor for tensor in onnx.load(rounded).graph.initializer}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    biases = {product.bias for product in products(graph.graph, arrays)} - {None}
    mixed = onnx.ModelProto()
    mixed.CopyFrom(graph)
    for tensor in mixed.graph.initializer:
        if tensor.name in biases:
            tensor.CopyFrom(corrected[tensor.name])
    return mixed


def round_together(weight: Array, moments: Moments, *, centred: bool) -> Array:
    """Weights [G, O, K] on their grids of steps of a 64th of the largest of each row [O], each at one of its two neighbours.

    Args:
        centred: Whether the mean error will be taken off a bias, so that only the inputs' variation matters.
    """
    step = np.abs(weight).max(axis=-1, keepdims=True) / LARGEST
    step = np.where(step == 0, 1.0, step)
    in_steps = weight / step
    if moments.square is None:
        return np.asarray(np.round(in_steps) * step)
    second = moments.square / moments.count
    noise = _NOISE * np.diagonal(second, axis1=1, axis2=2).mean(axis=-1, keepdims=True)
    if centred:
        second = second - moments.mean[:, :, None] * moments.mean[:, None, :]
    size = second.shape[-1]
    variances = np.diagonal(second, axis1=1, axis2=2)
    damping = np.maximum(_DAMPING * variances.mean(axis=-1, keepdims=True), noise)
    damped = second + np.eye(size) * np.where(damping > 0, damping, 1.0)[:, :, None]
    order = np.argsort(-variances.mean(axis=0), kind="stable")  # what varies most first: its errors can be made up for by most others
    factors = _inverse_factors(damped[:, order][:, :, order])
    rounded = np.empty_like(in_steps)
    rounded[:, :, order] = _in_turn(in_steps[:, :, order], factors)
    return np.asarray(rounded * step)


def _inverse_factors(second: Array) -> Array:
    """Upper Cholesky factors of the inverses, [G, K, K]."""
    return np.asarray(np.linalg.cholesky(np.linalg.inv(second)).transpose(0, 2, 1))


def _in_turn(values: Array, factors: Array) -> Array:
    """Round column after column [G, O, K]; the error of each is spread over the columns after it."""
    low, high = np.floor(values), np.ceil(values)
    values, rounded = values.copy(), np.empty_like(values)
    for start in range(0, values.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, values.shape[2]))
        errors = np.empty_like(values[:, :, block])
        for column in range(block.start, block.stop):
            chosen = np.clip(np.round(values[:, :, column]), low[:, :, column], high[:, :, column])
            rounded[:, :, column] = chosen
            error = (values[:, :, column] - chosen) / factors[:, None, column, column]
            errors[:, :, column - start] = error
            values[:, :, column + 1 : block.stop] -= error[:, :, None] * factors[:, None, column, column + 1 : block.stop]
        values[:, :, block.stop :] -= errors @ factors[:, block, block.stop :]
    return rounded
