"""A TorchServe handler as its documentation shows one: JSON or bytes in, ONNX Runtime, the same out. Runs in TorchServe's worker.

https://github.com/pytorch/serve/blob/master/docs/custom_service.md, "Custom handler with class level entry point". It is
a plain class, because TorchServe's base handler would cost a little more; ONNX Runtime has one thread, as in Modelway.
"""

from __future__ import annotations

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

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """One row in each request; its logits as it came: a list, or bytes."""
        bodies = [request.get("data") or request.get("body") for request in data]
        are_bytes = [isinstance(body, bytes | bytearray) for body in bodies]
        inputs = [self._row(body) for body in bodies]
        (logits,) = self._session.run(None, {"input": np.concatenate(inputs)})
        return [row.tobytes() if raw else row.tolist() for raw, row in zip(are_bytes, logits, strict=True)]

    def _row(self, body: Any) -> Any:
        if isinstance(body, bytes | bytearray):
            return np.frombuffer(body, np.float32).reshape(1, -1)
        tensor = body["inputs"][0]  # TorchServe parsed the JSON itself
        return np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
