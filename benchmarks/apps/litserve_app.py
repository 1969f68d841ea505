"""LitServe as its documentation shows it: setup, decode, predict, encode. Started as a program.

It reads nothing but JSON and forms, so the binary numbers come as base64, as in its examples with images. Annotations are
not postponed in this file, because LitServe looks at the one of `decode_request`.
"""

import base64
import os
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from onnx_model import OnnxModel

_BATCHED = int(os.environ["BENCH_MAX_BATCH"]) > 1


class MlpApi(litserve.LitAPI):
    """One row in each request."""

    def setup(self, device: str) -> None:
        """In each worker."""
        self._model = OnnxModel()

    def decode_request(self, request: Request) -> Any:
        """One row, [width] if LitServe batches, else [1, width]. What comes is the parsed JSON, whatever the annotation."""
        given: Any = request["input"]
        rows = np.frombuffer(base64.b64decode(given[0]), np.float32)[None] if isinstance(given[0], str) else np.asarray(given, np.float32)
        return rows[0] if _BATCHED else rows

    def batch(self, inputs: list[Any]) -> Any:
        """Rows to one array."""
        return np.stack(inputs)

    def unbatch(self, output: Any) -> Any:
        """The reverse."""
        return list(output)

    def predict(self, x: Any) -> Any:
        """Of one array."""
        return self._model.run(x)

    def encode_response(self, output: Any) -> Any:
        """A list of numbers."""
        return output.ravel().tolist()


if __name__ == "__main__":
    api = MlpApi(max_batch_size=int(os.environ["BENCH_MAX_BATCH"]), batch_timeout=int(os.environ["BENCH_DELAY_MS"]) / 1000)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(os.environ["BENCH_WORKERS"]),
        fast_queue=bool(int(os.environ["BENCH_FAST_QUEUE"])),
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=int(os.environ["BENCH_API_SERVERS"]),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
