"""BentoML services as its documentation shows them: arrays in, arrays out; with and without adaptive batching."""

from __future__ import annotations

import base64
import os
from typing import Any

import bentoml
import numpy as np
from onnx_model import OnnxModel

_WORKERS = int(os.environ["BENCH_WORKERS"])
_BATCHING: dict[str, Any] = {}
if os.environ["BENCH_BATCHED"] == "1":
    _BATCHING = {
        "batchable": True,
        "max_batch_size": int(os.environ["BENCH_MAX_BATCH"]),
        "max_latency_ms": int(os.environ["BENCH_LATENCY_MS"]),
    }


@bentoml.service(workers=_WORKERS, traffic={"timeout": 60, "max_concurrency": 1024}, logging={"access": {"enabled": False}})
class Mlp:
    """The ONNX file behind `/predict`."""

    def __init__(self) -> None:
        self._model = OnnxModel()

    @bentoml.api(**_BATCHING)
    def predict(self, input: np.ndarray) -> np.ndarray:
        """Rows as JSON, of one request or of several."""
        return self._model.run(input)

    @bentoml.api(**_BATCHING)
    def predict_base64(self, input: list[str]) -> np.ndarray:
        """The same with the bytes of each row in base64: only JSON is accepted from outside."""
        rows = [np.frombuffer(base64.b64decode(row), np.float32) for row in input]
        return self._model.run(np.stack(rows))
