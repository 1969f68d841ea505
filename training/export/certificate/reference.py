"""What a variant is held against: the eager float32 model's answers to the held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from registry.signature import Signature
from training.data.batches import Array, Rows
from training.evaluate import quality_name
from training.recipe import Task

Ask = Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a variant is held against.

    Attributes:
        signature: The model's inputs and outputs.
        rows: Held-out rows, at least 32.
        outputs: What the eager model answers to them, output name -> array [n, ...].
        task: Decides which quality the budget is about, and whether rows have a class.
        labelled: Whether the targets are labels. Otherwise they are the model's own answers, and quality is agreement.
        ask: The eager model, for rows of other lengths; needed where a dimension beside the batch is free.
        origin: Where the rows are from, in a few words.
    """

    signature: Signature
    rows: Rows
    outputs: Mapping[str, Array]
    task: Task
    labelled: bool = True
    ask: Ask | None = None
    origin: str = "held-out rows"
    _peaks: Mapping[str, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_peaks", {name: peak(array) for name, array in self.outputs.items()})

    @property
    def first(self) -> str:
        """The output that quality is about."""
        return next(iter(self.outputs))

    @property
    def quality_name(self) -> str:
        """What the budget is about: `accuracy`, `r2`, or `agreement` where there are no labels."""
        return quality_name(self.task) if self.labelled else "agreement"

    def peak(self, output: str) -> float:
        """Largest absolute finite value of an output; 0 if it has none."""
        return self._peaks[output]


def peak(array: Array) -> float:
    """Largest absolute finite value; 0 if there is none."""
    if array.dtype.kind in "OU":  # texts are equal or not
        return 0.0
    if array.dtype.kind == "f":
        finite = array[np.isfinite(array)]
        return max(float(finite.max(initial=0.0)), -float(finite.min(initial=0.0)))
    return max(float(array.max(initial=0)), -float(array.min(initial=0)))
