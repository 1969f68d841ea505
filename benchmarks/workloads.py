"""What is asked: the inputs of each measurement and the answers that are right, as one file that every process reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.mlp import ATOL, LAYERS, MODEL, expected_logits, rows

Floats = npt.NDArray[np.float32]

_NUM_ROWS = 32
_NUM_LARGE_ROWS = 2
LARGE_WIDTHS = (250_000, 1_250_000)  # float32: 1 MB and 5 MB


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One ONNX file with one input `input` [N, width] and one output `logits` [N, num_outputs].

    Attributes:
        model: The ONNX file.
        samples: The file with inputs and right answers.
        num_golden: How many of the samples are Modelway's golden set.
    """

    name: str
    model: Path
    samples: Path
    width: int
    num_outputs: int
    num_golden: int = 8


def save_samples(path: Path, inputs: Floats, expected: Floats) -> None:
    """Write inputs [N, ...] and the right answers [N, M]."""
    np.savez(path, inputs=inputs, expected=expected)


def load_samples(path: Path) -> tuple[Floats, Floats]:
    """What `save_samples` wrote."""
    with np.load(path) as file:
        return file["inputs"], file["expected"]


def is_close(values: Floats, expected: Floats) -> bool:
    """Whether the values are those expected, in whatever shape."""
    return values.size == expected.size and bool(np.allclose(values.ravel(), expected.ravel(), atol=ATOL, rtol=ATOL))


def write_mlp(directory: Path) -> Workload:
    """The MLP, version 1."""
    from benchmarks.bundles import write_onnx  # noqa: PLC0415  onnx is slow to import, and the load generator does not need it

    model, samples = directory / "mlp.onnx", directory / "mlp.npz"
    write_onnx(model, 1)
    inputs = rows(_NUM_ROWS)
    save_samples(samples, inputs, expected_logits(inputs, 1))
    return Workload(name=MODEL, model=model, samples=samples, width=LAYERS[0], num_outputs=LAYERS[-1])


def write_mean(directory: Path, width: int) -> Workload:
    """A model that does next to nothing with a large input: its mean."""
    from benchmarks.bundles import write_mean_onnx  # noqa: PLC0415

    name = f"bench-mean-{width}"
    model, samples = directory / f"{name}.onnx", directory / f"{name}.npz"
    write_mean_onnx(model, width)
    rng = np.random.default_rng(width)
    # Sixteenths, because Modelway asks its golden set in JSON, and numbers of full length would be longer than the body limit.
    sixteenths = rng.integers(0, 16, (_NUM_LARGE_ROWS, width)).astype(np.float32) / 16
    inputs = (sixteenths + np.arange(_NUM_LARGE_ROWS, dtype=np.float32)[:, None]).astype(np.float32)
    save_samples(samples, inputs, inputs.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32))
    return Workload(name=name, model=model, samples=samples, width=width, num_outputs=1, num_golden=1)
