"""Which of a sample's inputs a Python module takes, in which order, and whether it must be called by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from registry.errors import UsageError
from training.data.batches import Array
from training.importing.request import Adaptation
from training.importing.sample import Sample, in_order
from training.interface import input_names


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """How a module takes a sample.

    Attributes:
        inputs: The sample's inputs, in the order of `forward`.
        by_position: Whether they are the first parameters of `forward`, with nothing bound or changed: the module is then
            called as it is.
    """

    inputs: Mapping[str, Array]
    by_position: bool


def taken_by(module: nn.Module, sample: Sample, adaptation: Adaptation, *, what: str) -> Taken:
    """How the module takes the sample's inputs. Raises UsageError if it does not."""
    parameters = inspect.signature(module.forward).parameters
    named = input_names(module)
    if not named:  # forward(*inputs): there are only positions
        if adaptation.fixed:
            raise UsageError(f"--fix needs an input with a name, and the forward of {what} has none", "Wrap it in a class that names them.")
        return Taken(inputs=sample.inputs, by_position=not adaptation)
    sample = sample.named(named)
    unknown = [name for name in adaptation.fixed if name not in parameters]
    if unknown:
        raise UsageError(f"--fix names an input that forward does not have ({unknown[0]})", f"It takes {', '.join(named)}.")
    wanted = tuple(
        name
        for name in named
        if name not in adaptation.fixed and (name in sample.inputs or parameters[name].default is inspect.Parameter.empty)
    )
    return Taken(inputs=in_order(sample, wanted, what=what), by_position=not adaptation and wanted == named[: len(wanted)])
