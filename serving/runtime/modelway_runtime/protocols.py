"""The protocols that a worker speaks: bytes of a request -> named arrays, and named arrays -> bytes of an answer.

    v2-infer     Open Inference Protocol v2, JSON and the binary tensor extension (v2.py)
    v2-ready     that protocol's version readiness
    v2-grpc      its gRPC messages, without their frames (grpc_messages.py), and v2-grpc-ready
    v1-predict   TensorFlow Serving's REST API, `instances` (rows) and `inputs` (columns) (v1.py)
    predictions  TorchServe's: a bare JSON array of rows, or {"instances": rows} (v1.py)

A protocol is one function in `DECODERS`; it returns the arrays and a function that encodes the answer. What is
decoded is complete and valid: every input of the signature, of its dtype, of a shape that fits, with as many rows.
Only whether binary numbers are finite is left to the core, which looks at a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import RequestError
from .grpc_messages import decode_grpc_infer, decode_grpc_ready
from .messages import BINARY, JSON, JSON_LENGTH_HEADER, Answer, Decoded, Decoder, Headers, ModelInfo, error_answer
from .v1 import decode_predictions, decode_v1
from .v2 import decode_v2_infer, decode_v2_ready

__all__ = [
    "BINARY",
    "DECODERS",
    "DEFAULT_PROTOCOL",
    "JSON",
    "JSON_LENGTH_HEADER",
    "PROTOCOL_HEADER",
    "Answer",
    "Decoded",
    "Decoder",
    "Headers",
    "ModelInfo",
    "decode",
    "error_answer",
]

PROTOCOL_HEADER = "x-modelway-protocol"
DEFAULT_PROTOCOL = "predictions"

DECODERS: Mapping[str, Decoder] = {
    "v2-infer": decode_v2_infer,
    "v2-ready": decode_v2_ready,
    "v2-grpc": decode_grpc_infer,
    "v2-grpc-ready": decode_grpc_ready,
    "v1-predict": decode_v1,
    "predictions": decode_predictions,
}


def decode(model: ModelInfo, headers: Headers, body: memoryview) -> Decoded | Answer:
    """Decode one request by the protocol that its header names. Raises RequestError 4xx."""
    decoder = DECODERS.get(headers.get(PROTOCOL_HEADER, DEFAULT_PROTOCOL))
    if decoder is None:
        raise RequestError(400, f"unknown protocol; {PROTOCOL_HEADER} must be one of {', '.join(DECODERS)}")
    return decoder(model, headers, body)
