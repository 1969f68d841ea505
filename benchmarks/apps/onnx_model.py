"""The model of every application here: ONNX Runtime on the CPU with one thread. Rows in, rows out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime


class OnnxModel:
    """The ONNX file that the environment variable BENCH_MODEL names."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        self.width = int(os.environ["BENCH_WIDTH"])

    def run(self, rows: Any) -> Any:
        """[N, width] float32 -> [N, M] float32."""
        return self._session.run(None, {"input": np.asarray(rows, np.float32)})[0]
