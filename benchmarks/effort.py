"""How much is measured, in the full run and in the smoke run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.workloads import LARGE_WIDTHS


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The full run by default.

    Attributes:
        connections: Of the closed loops with the MLP.
        cell_s: Seconds of one server in one form at one number of connections.
        fractions: Arrival rates of the open loops, of each server's own best rate.
        large_widths: float32 numbers of one large input.
        model_connections: Of EfficientNet-Lite0.
        num_warm: Promotions and warm rollbacks, by each of the two ways of giving them.
        num_cold: The same of cold rollbacks.
        num_restarts: Further starts of the platform.
        num_helps: Runs of `modelway --help`.
        settle_s: Idle seconds before memory is read.
    """

    connections: Sequence[int] = (1, 8, 32, 64)
    num_rounds: int = 3
    cell_s: float = 1.5
    warmup_s: float = 0.3
    calibration_s: float = 1.0
    fractions: Sequence[float] = (0.5, 0.8)
    num_open_rounds: int = 2
    open_s: float = 3.0
    large_widths: Sequence[int] = LARGE_WIDTHS
    large_connections: Sequence[int] = (1, 4)
    num_large_rounds: int = 2
    model_connections: Sequence[int] = (1, 2, 4, 8)
    num_model_rounds: int = 3
    model_cell_s: float = 2.0
    num_warm: int = 10
    num_cold: int = 5
    num_restarts: int = 2
    num_helps: int = 7
    settle_s: float = 10.0


FULL = Effort()
QUICK = Effort(
    connections=(1, 8, 32),
    num_rounds=1,
    cell_s=0.25,
    warmup_s=0.1,
    calibration_s=0.0,
    fractions=(0.5,),
    num_open_rounds=1,
    open_s=0.5,
    large_widths=LARGE_WIDTHS[:1],
    large_connections=(1,),
    num_large_rounds=1,
    model_connections=(2,),
    num_model_rounds=1,
    model_cell_s=0.5,
    num_warm=1,
    num_cold=1,
    num_restarts=0,
    num_helps=1,
    settle_s=0.0,
)
