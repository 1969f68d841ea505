"""What an export needs of a version, wherever its model comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from training.data.batches import Rows
from training.recipe import ExportConfig, Task

MIN_HELD_OUT_ROWS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRows:
    """Rows that variants are tuned and measured on.

    Attributes:
        held_out: At least 32 rows that certificates are measured on. Without labels their target is the model's own answer.
        calibration: Rows for quantizers; not the held-out ones where there are enough.
        labelled: Whether the targets are labels.
        origin: Where the rows are from, in a few words, for the certificate.
    """

    held_out: Rows
    calibration: Rows
    labelled: bool
    origin: str


class Source(Protocol):
    """A version's model as it was trained or imported."""

    @property
    def model(self) -> nn.Module:
        """In evaluation mode, on the CPU, with the version's weights; what variants are held against."""

    @property
    def weights_sha256(self) -> str:
        """Digest of its weights' file."""

    @property
    def task(self) -> Task:
        """What the first output means."""

    @property
    def export(self) -> ExportConfig:
        """What is made of the version where the user does not say otherwise."""

    @property
    def given_graph(self) -> Path | None:
        """The float32 ONNX file that the version was imported as; None if its model is a module."""

    @property
    def serving(self) -> Path | None:
        """Directory with `transforms.json` and the files that it names; None if the version has no transforms."""

    def evaluation(self, config: ExportConfig) -> EvaluationRows:
        """Rows to tune and measure on. Raises UsageError, Corrupt."""
