"""Runs in Triton's Python backend: ONNX Runtime with one thread over whatever dynamic batching put together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The class that the backend looks for (github.com/triton-inference-server/python_backend)."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the ONNX file that config.pbtxt names."""
        path = json.loads(args["model_config"])["parameters"]["model"]["string_value"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run for all requests, one answer for each."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        (logits,) = self._session.run(None, {"input": inputs[0] if len(inputs) == 1 else np.concatenate(inputs)})
        responses, start = [], 0
        for batch in inputs:
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits[start : start + len(batch)])]))
            start += len(batch)
        return responses
