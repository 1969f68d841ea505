"""A model behind another face: constants bound, the batch moved to the front, inputs normalized, all of it inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from training.components import build_model
from training.importing.request import Adaptation, Normalization
from training.interface import named_outputs
from training.recipe import ComponentConfig

INNER = "model."  # where an adapted model keeps the parameters of the one that it holds


class Face(nn.Module):
    """Positional tensors in, a tuple of tensors out; between them the adapted model, called by name.

    Args:
        model: What is called with `inputs` and the fixed values as keyword arguments.
        inputs: Names of the endpoint's inputs, in order.
        outputs: Names of the outputs, in order; None if no output needs to be moved.
        adaptation: What is changed.
    """

    def __init__(self, model: nn.Module, *, inputs: Sequence[str], outputs: Sequence[str] | None, adaptation: Adaptation) -> None:
        super().__init__()
        self.model = model
        self._inputs = tuple(inputs)
        self._outputs = None if outputs is None else tuple(outputs)
        self._fixed = dict(adaptation.fixed)
        self._axes = dict(adaptation.batch_axes)
        for name, how in adaptation.normalize.items():
            # Buffers, as exporters know them; they are made with the class and need no place among its weights.
            for what, values in (("mean", how.mean), ("std", how.std)):
                self.register_buffer(f"{name}_{what}", torch.tensor(values, dtype=torch.float32), persistent=False)
        self._scales = {name: (how.scale, how.axis) for name, how in adaptation.normalize.items()}

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor] | tuple[torch.Tensor, ...]:
        """The model's outputs, the batch first; by name where the model names them."""
        values = {name: self._into(name, tensor) for name, tensor in zip(self._inputs, tensors, strict=True)}
        answer = self.model(**values, **self._fixed)
        named = named_outputs(answer, self._outputs, "regression")
        moved = {name: _moved(tensor, self._axes[name], 0) if name in self._axes else tensor for name, tensor in named.items()}
        return moved if isinstance(answer, Mapping) or self._outputs is not None else tuple(moved.values())

    def _into(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name in self._scales:
            mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
            scale, axis = self._scales[name]
            tensor = normalized(tensor, mean=mean, std=std, scale=scale, axis=axis)
        return _moved(tensor, 0, self._axes[name]) if name in self._axes else tensor


class AdaptedModel(Face):
    """A `Face` over a class that is named, so that a source of kind `module` can hold it.

    Args:
        class_path: Dotted path of the model's class.
        init_args: Its arguments.
        inputs: Names of the endpoint's inputs, in order.
        outputs: Names of the outputs, in order; None where none is moved.
        fixed: See `Adaptation`.
        batch_axes: See `Adaptation`.
        normalize: Input -> the fields of a `Normalization`.
    """

    def __init__(
        self,
        *,
        class_path: str,
        init_args: dict[str, Any],
        inputs: list[str],
        outputs: list[str] | None,
        fixed: dict[str, Any],
        batch_axes: dict[str, int],
        normalize: dict[str, Any],
    ) -> None:
        super().__init__(
            build_model(ComponentConfig(class_path=class_path, init_args=init_args)),
            inputs=inputs,
            outputs=outputs,
            adaptation=Adaptation(fixed=fixed, batch_axes=batch_axes, normalize=normalizations(normalize)),
        )


def adapted_component(
    model: ComponentConfig, *, inputs: Sequence[str], outputs: Sequence[str] | None, adaptation: Adaptation
) -> ComponentConfig:
    """The component that makes an `AdaptedModel` of that one."""
    return ComponentConfig(
        class_path=f"{AdaptedModel.__module__}.{AdaptedModel.__qualname__}",
        init_args={
            "class_path": model.class_path,
            "init_args": dict(model.init_args),
            "inputs": list(inputs),
            "outputs": None if outputs is None else list(outputs),
            "fixed": dict(adaptation.fixed),
            "batch_axes": dict(adaptation.batch_axes),
            "normalize": {
                name: {"mean": list(n.mean), "std": list(n.std), "scale": n.scale, "axis": n.axis}
                for name, n in adaptation.normalize.items()
            },
        },
    )


def normalized(tensor: torch.Tensor, *, mean: torch.Tensor, std: torch.Tensor, scale: float, axis: int) -> torch.Tensor:
    """`(x * scale - mean) / std` in float32, one mean and std per place along the axis, or one for all.

    >>> normalized(torch.tensor([[127, 255]], dtype=torch.uint8), mean=torch.tensor([127.0]), std=torch.tensor([128.0]), scale=1, axis=1)
    tensor([[0., 1.]])
    """
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return (tensor.to(torch.float32) * scale - mean.reshape(shape)) / std.reshape(shape)


def _moved(tensor: torch.Tensor, source: int, destination: int) -> torch.Tensor:
    """torch.movedim as a permutation, which every exporter knows also where it does not know the tensor's rank."""
    order = [dimension for dimension in range(tensor.ndim) if dimension != source]
    order.insert(destination, source)
    return tensor.permute(order)


def normalizations(plain: Mapping[str, Any]) -> dict[str, Normalization]:
    """Normalizations of their fields, as an adapted component keeps them."""
    return {
        name: Normalization(mean=tuple(n["mean"]), std=tuple(n["std"]), scale=float(n["scale"]), axis=int(n["axis"]))
        for name, n in plain.items()
    }
