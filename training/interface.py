"""How a model is called and what it answers: named tensors in, named tensors out, in a fixed order.

Batches of a DataModule are `(inputs, target)`. Inputs are one tensor, a tuple of tensors in the order of `forward`'s
parameters, or a dict keyed by their names. A model answers one tensor, a tuple, or a dict of tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from registry.errors import UsageError
from registry.signature import PROTOCOL_DTYPES, Signature, TensorSpec
from training.recipe import Task

Tensors = dict[str, torch.Tensor]


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of the model's `forward`."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, p in inspect.signature(model.forward).parameters.items() if p.kind in positional)


def named_inputs(model: nn.Module, inputs: Any) -> Tensors:
    """The inputs of a batch by name, in the order of `forward`. Raises UsageError if they do not fit it."""
    names = input_names(model)
    if isinstance(inputs, Mapping):
        unknown = sorted(set(inputs) - set(names))
        if unknown:
            raise UsageError(
                f"the data has an input that the model's forward does not take ({unknown[0]})", f"It takes {', '.join(names)}."
            )
        return {name: inputs[name] for name in names if name in inputs}
    values = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    if not 1 <= len(values) <= len(names):
        raise UsageError(f"the data has {len(values)} inputs, the model's forward takes {len(names)} ({', '.join(names)})")
    return dict(zip(names, values, strict=False))


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's answer to the inputs of a batch, in the forms that batches have."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs) if isinstance(inputs, torch.Tensor) else model(*inputs)


def primary_output(answer: Any) -> torch.Tensor:
    """The first tensor of an answer: logits or predicted values. Raises UsageError if there is none."""
    return next(iter(named_outputs(answer, None, "classification").values()))


def named_outputs(answer: Any, names: Sequence[str] | None, task: Task) -> Tensors:
    """The answer's tensors by name, in order.

    Args:
        names: Names to give, one per tensor; None for the model's own (dict keys) or the usual ones of the task.

    Raises:
        UsageError: The answer is not made of tensors, or has another number of them than `names`.
    """
    own: Sequence[str] | None = None
    if isinstance(answer, Mapping):
        own, values = [str(key) for key in answer], tuple(answer.values())
    else:
        values = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise UsageError(f"the model must answer one tensor, a tuple or a dict of tensors ({type(answer).__name__})")
    if names is None and own is None:
        usual = "logits" if task == "classification" else "prediction"
        own = [usual] if len(values) == 1 else [f"output_{index}" for index in range(len(values))]
    chosen = names or own or ()
    if len(chosen) != len(values):
        raise UsageError(f"the model has {len(values)} outputs, export.outputs names {len(chosen)} ({', '.join(chosen)})")
    return dict(zip(chosen, values, strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, as long as the block lasts."""
    training = getattr(model, "training", False)  # a frozen TorchScript module has no modes
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class Inference(nn.Module):
    """The form of a model that is exported: positional tensors in, one tensor or a tuple out, in the signature's order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = getattr(model, "training", False)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The model's outputs without their names."""
        outputs = tuple(named_outputs(self.model(*inputs), None, "classification").values())
        return outputs[0] if len(outputs) == 1 else outputs


def infer_signature(
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    *,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    ask: Callable[[Tensors], Mapping[str, torch.Tensor]] | None = None,
) -> Signature:
    """Signature of tensors as they came: the first dimension free, the others fixed but for those that the caller names.

    Args:
        dynamic: Input -> its dimensions that are free beside the batch.
        ask: The model; asked with the free dimensions cut to half, to find which dimensions of the outputs go with them.

    Raises:
        UsageError: Odd dtypes or shapes, or a free dimension that is not there or too short to be cut.
    """
    rows = next(iter(inputs.values())).shape[0]
    for name, tensor in {**inputs, **outputs}.items():
        if tensor.ndim < 1 or tensor.shape[0] != rows:
            raise UsageError(f"the first dimension of {name} is not the batch ({list(tensor.shape)}, batch of {rows})")
    free = {name: set(dimensions) for name, dimensions in (dynamic or {}).items()}
    shorter = {name: _shortened(name, tensor, free.pop(name, set())) for name, tensor in inputs.items()}
    if free:
        raise UsageError(f"a free dimension of an input that the model does not have ({min(free)})", f"Its inputs are {', '.join(inputs)}.")
    answers = ask(shorter) if ask is not None and dynamic else outputs
    return Signature(
        inputs=tuple(_spec(name, tensor, shorter[name]) for name, tensor in inputs.items()),
        outputs=tuple(_spec(name, tensor, answers[name]) for name, tensor in outputs.items()),
    )


def _shortened(name: str, tensor: torch.Tensor, dimensions: set[int]) -> torch.Tensor:
    for dimension in sorted(dimensions):
        if not 1 <= dimension < tensor.ndim or tensor.shape[dimension] < 2:
            raise UsageError(
                f"dimension {dimension} of {name} cannot be free ({list(tensor.shape)})",
                "Name a dimension from 1 on, and give a sample in which it is 2 or longer.",
            )
        tensor = tensor.narrow(dimension, 0, tensor.shape[dimension] // 2)
    return tensor


def _spec(name: str, tensor: torch.Tensor, shorter: torch.Tensor) -> TensorSpec:
    """A dimension that differs between the two is free."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in PROTOCOL_DTYPES:
        raise UsageError(f"unsupported dtype of {name} ({dtype})", f"Use one of {', '.join(PROTOCOL_DTYPES)}.")
    fixed = (size if size == other else -1 for size, other in zip(tensor.shape[1:], shorter.shape[1:], strict=True))
    return TensorSpec(name, PROTOCOL_DTYPES[dtype], (-1, *fixed))
