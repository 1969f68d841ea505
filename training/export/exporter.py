"""What a variant is: one class that says whether it fits, makes its files, knows its limits and can look into what it made.

A new variant is one small file with such a class, added to `training.export.catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from registry.certificate import Check
from registry.signature import Signature
from training.data.batches import Rows
from training.recipe import Target, Task

ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.pt"
AOTI_FILE = "model.pt2"
# More bytes of weights than this lie in a file beside the graph; a protobuf message ends at 2 GiB.
EXTERNAL_DATA_BYTES = 1_500_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a variant must meet against the eager float32 model. Errors are fractions of the output's largest absolute value.

    Attributes:
        max_error: Largest error of any value.
        mean_error: Largest mean error.
        row_error: Largest difference between the same row alone, in a batch and in a permuted batch.
        min_agreement: Least share of rows with the same class.
        follows_budget: Whether a larger accuracy budget lowers `min_agreement` too, as for quantized variants: where classes agree in
            95% of the rows, accuracy cannot fall by more than 5%.
    """

    max_error: float
    mean_error: float
    row_error: float
    min_agreement: float
    follows_budget: bool = False

    def within(self, accuracy_drop: float) -> Limits:
        """The limits under an accuracy budget, as a fraction."""
        if not self.follows_budget:
            return self
        return replace(self, min_agreement=min(self.min_agreement, 1 - accuracy_drop))


# Float32 in another order of operations: a few units in the last place per layer. A deep network gets to 1e-5.
FP32_LIMITS = Limits(max_error=2e-5, mean_error=5e-6, row_error=1e-5, min_agreement=0.999)
# Half precision has 11 bits: 5e-4 per operation, and another kernel for another size of batch.
FP16_LIMITS = Limits(max_error=1e-2, mean_error=2e-3, row_error=1e-2, min_agreement=0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportContext:
    """What exporters work with, beside the model.

    Attributes:
        signature: The model's inputs and outputs, in order.
        example: Input name -> tensor of at least two rows: with one row exporters freeze the batch dimension.
        calibration: Training rows (of an imported model: the given sample) for quantizers. What a quantizer tunes, it tunes on
            these, never on the held-out rows that the certificate is measured on.
        task: What the first output means.
        accuracy_drop: How much quality a variant may lose, as a fraction; what a search for sensitive nodes aims at.
        target: The device that the variant is for.
        scratch: Directory for intermediate files, shared by the exporters of one model.
        external_data_bytes: More bytes of weights than this lie in a file beside their ONNX graph.
        given_graph: The float32 ONNX file that the version was imported as; None for one that is made from the module.
    """

    signature: Signature
    example: Mapping[str, torch.Tensor]
    calibration: Rows
    task: Task
    scratch: Path
    accuracy_drop: float = 0.01
    target: Target = "cpu"
    given_graph: Path | None = None
    external_data_bytes: int = EXTERNAL_DATA_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What an exporter found in the files: checks on their structure, and facts for the reader."""

    checks: tuple[Check, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """One variant."""

    @property
    def name(self) -> str:
        """The variant's name, for example `onnx-fp32`."""

    @property
    def limits(self) -> Limits:
        """What the variant must meet."""

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """Why the variant makes no sense for this model on this target (one clause); None if it does. Cheap: nothing is exported."""

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write the variant's files into the existing directory `into`. May raise anything; a failure is certified as one."""

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Look into the files that lie in `directory`. Must not trust that `export` of this process wrote them."""
