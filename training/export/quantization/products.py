"""Nodes that multiply data by a weight, all seen as matrix products: output[g, o] = sum over k of weight[g, o, k] * data[g, k]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from training.data.batches import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One such node.

    Attributes:
        node: Its name.
        data: Name of the data that is multiplied.
        weight: Name of the weight.
        bias: Name of the bias that is added, which nothing else uses; None if there is none.
        groups: G; 1 but for grouped and depthwise convolutions.
        turned: Whether the weight is stored as [K, O].
        kernel: Sizes of a convolution's kernel; empty for a matrix.
        strides: Its strides.
        pads: What is padded before and after each dimension.
    """

    node: str
    data: str
    weight: str
    bias: str | None
    groups: int = 1
    turned: bool = False
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()

    def as_matrices(self, weight: Array) -> Array:
        """[G, O, K] of a weight as it is stored."""
        return weight.T[None] if self.turned else weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def as_stored(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `as_matrices`."""
        return np.ascontiguousarray(matrices[0].T if self.turned else matrices.reshape(shape))

    def samples(self, data: Array, per_row: int, generator: np.random.Generator) -> Array:
        """What the weight meets at some positions of each row, [G, positions, K]."""
        if not self.kernel:
            flat = data.reshape(data.shape[0], -1, data.shape[-1])
            return _some(flat, per_row, generator).reshape(1, -1, data.shape[-1])
        spatial = tuple(range(2, data.ndim))
        if any(before or after for before, after in self.pads):
            data = np.pad(data, ((0, 0), (0, 0), *self.pads))
        windows = np.lib.stride_tricks.sliding_window_view(data, self.kernel, axis=spatial)
        every: Any = (slice(None), slice(None), *(slice(None, None, stride) for stride in self.strides))
        windows = windows[every]
        places = windows.shape[2 : 2 + len(spatial)]
        chosen = np.unravel_index(_positions(int(np.prod(places)), per_row, generator), places)
        picked = windows[(slice(None), slice(None), *chosen)]  # [rows, channels, positions, *kernel]
        rows, channels, positions = picked.shape[:3]
        grouped = picked.reshape(rows, self.groups, channels // self.groups, positions, -1)
        return np.ascontiguousarray(grouped.transpose(1, 0, 3, 2, 4)).reshape(self.groups, rows * positions, -1)


def products(graph: onnx.GraphProto, tensors: Mapping[str, Array]) -> tuple[Product, ...]:
    """The products of a graph whose weights are used once; forms that are not understood (dilated, transposed) are left out."""
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    found = []
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in tensors or uses[node.input[1]] > 1:
            continue
        product = _product(node, tensors[node.input[1]])
        if product is not None:
            own_bias = product.bias is not None and product.bias in tensors and uses[product.bias] == 1 and tensors[product.bias].ndim == 1
            found.append(product if own_bias or product.bias is None else _without_bias(product))
    return tuple(found)


def _product(node: onnx.NodeProto, weight: Array) -> Product | None:
    values: dict[str, Any] = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "MatMul" and weight.ndim == 2:
        return Product(node=node.name, data=node.input[0], weight=node.input[1], bias=None, turned=True)
    if node.op_type == "Gemm" and not values.get("transA") and values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0:
        return Product(node=node.name, data=node.input[0], weight=node.input[1], bias=bias, turned=not values.get("transB"))
    if node.op_type == "Conv" and values.get("auto_pad", b"NOTSET") == b"NOTSET" and set(values.get("dilations", [1])) == {1}:
        kernel = tuple(weight.shape[2:])
        pads = values.get("pads", [0] * 2 * len(kernel))
        return Product(
            node=node.name,
            data=node.input[0],
            weight=node.input[1],
            bias=bias,
            groups=values.get("group", 1),
            kernel=kernel,
            strides=tuple(values.get("strides", [1] * len(kernel))),
            pads=tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
        )
    return None


def _without_bias(product: Product) -> Product:
    return Product(**{name: getattr(product, name) for name in Product.__slots__} | {"bias": None})


def _positions(available: int, wanted: int, generator: np.random.Generator) -> Array:
    return np.arange(available) if available <= wanted else np.sort(generator.choice(available, wanted, replace=False))


def _some(flat: Array, per_row: int, generator: np.random.Generator) -> Array:
    return flat[:, _positions(flat.shape[1], per_row, generator)]
