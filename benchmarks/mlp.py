"""The model of all measurements: an MLP 1000-500-250-10 in float32 with known weights. numpy only, no effects.

Version n has weights of seed n, and its answers lie far from every other version's, so that an answer tells who gave it.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

MODEL = "bench-mlp"
INPUT, OUTPUT = "input", "logits"
LAYERS = (1000, 500, 250, 10)
ATOL = 1e-3  # between ONNX Runtime and numpy; two versions differ by about 10

Floats = npt.NDArray[np.float32]


@cache
def weights(version: int) -> tuple[tuple[Floats, Floats], ...]:
    """(weight [in, out], bias [out]) of each layer; the last bias carries 10 times the version."""
    rng = np.random.default_rng(version)
    layers = []
    for num_in, num_out in pairwise(LAYERS):
        weight = (rng.standard_normal((num_in, num_out)) / np.sqrt(num_in)).astype(np.float32)
        layers.append((weight, rng.uniform(-1, 1, num_out).astype(np.float32)))
    last_weight, last_bias = layers[-1]
    layers[-1] = (last_weight, (last_bias + 10 * version).astype(np.float32))
    return tuple(layers)


def expected_logits(inputs: Floats, version: int) -> Floats:
    """What a version answers, [N, 1000] -> [N, 10]."""
    hidden, layers = inputs, weights(version)
    for weight, bias in layers[:-1]:
        hidden = np.maximum(hidden @ weight + bias, 0)
    weight, bias = layers[-1]
    return np.asarray(hidden @ weight + bias, dtype=np.float32)


def rows(num_rows: int) -> Floats:
    """The inputs of all requests, [num_rows, 1000]; the same in each process."""
    return np.random.default_rng(1234).uniform(-2, 2, (num_rows, LAYERS[0])).astype(np.float32)


def payload(batch: Floats) -> bytes:
    """An Open Inference Protocol v2 request in JSON; each number in the fewest digits that give the float32 back."""
    data = [float(str(value)) for value in batch.ravel()]
    return json.dumps({"inputs": [{"name": INPUT, "datatype": "FP32", "shape": list(batch.shape), "data": data}]}).encode()


def is_right(body: Any, expected: Floats) -> bool:
    """Whether the answer to one row, of whichever server, holds the expected logits [10]."""
    try:
        values = body["outputs"][0]["data"] if isinstance(body, dict) else body
        return bool(np.allclose(np.asarray(values, dtype=np.float32).ravel(), expected, atol=ATOL))
    except (KeyError, IndexError, TypeError, ValueError):
        return False
