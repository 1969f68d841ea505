"""gRPC clients for tests: the stub that comes with tritonclient, and calls whose bytes are ours to spoil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

SERVICE = "inference.GRPCInferenceService"
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Outcome:
    """What a call came to. `message` is None unless the status is OK."""

    code: grpc.StatusCode
    details: str
    headers: dict[str, str]  # initial metadata; of an error that has none, the trailing
    message: Any = None


class GrpcClient:
    """One channel to a gateway on this machine."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)])
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, request: Any, *, timeout_s: float = 30, metadata: Metadata = (), **options: Any) -> Outcome:
        """One call of a method of the stub."""
        return outcome(getattr(self.stub, method), request, timeout_s, metadata, **options)

    def send(self, message: bytes, method: str = "ModelInfer", *, timeout_s: float = 30, metadata: Metadata = ()) -> Outcome:
        """One call with any bytes as its message; the answer's bytes are the outcome's message."""
        return outcome(self.channel.unary_unary(f"/{SERVICE}/{method}"), message, timeout_s, metadata)


def outcome(call: Any, request: Any, timeout_s: float, metadata: Metadata, **options: Any) -> Outcome:
    """The outcome of a call, whatever it is."""
    try:
        message, done = call.with_call(request, timeout=timeout_s, metadata=tuple(metadata), **options)
    except grpc.RpcError as error:
        headers = dict(error.initial_metadata() or ()) | dict(error.trailing_metadata() or ())
        return Outcome(error.code(), error.details() or "", headers)
    return Outcome(done.code(), "", dict(done.initial_metadata()), message)


def infer_request(model: str, rows: np.ndarray, *, raw: bool = True, version: str = "", **fields: Any) -> Any:
    """A ModelInferRequest of float32 rows [n, 4] for the input `input`."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, **fields)
    tensor = request.inputs.add(name="input", datatype="FP32", shape=rows.shape)
    if raw:
        request.raw_input_contents.append(rows.astype("<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(rows.ravel().tolist())
    return request


def logits_of(response: Any) -> np.ndarray:
    """The one output of a ModelInferResponse, raw or not."""
    (output,) = response.outputs
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(tuple(output.shape))
    return np.array(output.contents.fp32_contents, np.float32).reshape(tuple(output.shape))
