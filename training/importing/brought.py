"""What bringing a model's file into a source directory gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.data.batches import Array
from training.recipe import ComponentConfig
from training.source.imported import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """A model whose file now lies in a source directory.

    Attributes:
        kind: In which form.
        inputs: The sample's inputs in the order in which that form takes them.
        outputs: Names for its outputs; None where the form names them itself, or the usual names will do.
        model: Its class, for kind `module`.
        facts: What was found in the file, for people: opset, number of parameters.
    """

    kind: Kind
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] | None = None
    model: ComponentConfig | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
