"""A TorchServe handler as its documentation shows one: JSON in, ONNX Runtime, JSON out. Runs in TorchServe's worker.

https://github.com/pytorch/serve/blob/master/docs/custom_service.md, "Custom handler with class level entry point". It is
a plain class, because TorchServe's base handler would cost a little more; ONNX Runtime has one thread, as in Modelway.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class StockHandler:
    """Answers each request of a batch with a list of logits."""

    def __init__(self) -> None:
        self._session: Any = None

    def initialize(self, context: Any) -> None:
        """Load the ONNX file of the archive."""
        path = Path(context.system_properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[list[float]]:
        """Rows [N, 1000] in, one list of 10 logits for each."""
        (logits,) = self._session.run(None, {"input": np.concatenate([self._row(request) for request in data])})
        return [row.tolist() for row in logits]

    def _row(self, request: dict[str, Any]) -> Any:
        body: Any = request.get("data") or request.get("body")
        if isinstance(body, bytes | bytearray):  # TorchServe parses JSON itself unless it was told not to
            body = json.loads(body)
        tensor = body["inputs"][0]
        return np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
