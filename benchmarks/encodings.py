"""How a request and its answer are written for each server. Pure.

Servers that speak the Open Inference Protocol v2 get it, in JSON and with its binary extension
(https://github.com/kserve/open-inference-protocol, https://github.com/triton-inference-server/server, `extension_binary_data.md`).
The others get the nearest thing that their documentation has; `is_binary` tells which of the two tables a form belongs to.
"""

from __future__ import annotations

import base64
import json
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

INPUT, OUTPUT = "input", "logits"
_HEADER_LENGTH = "inference-header-content-length"


class Encoding(StrEnum):
    """A form of requests and answers."""

    V2_JSON = "v2-json"
    V2_BINARY = "v2-binary"
    OCTETS = "octets"  # the bytes of the float32 tensor, both ways
    MLFLOW_JSON = "mlflow-json"  # {"inputs": [[...]]}
    NAMED_JSON = "named-json"  # {"input": [[...]]}
    BASE64_JSON = "base64-json"  # {"input": ["..."]}: for a server that reads nothing but JSON

    @property
    def is_binary(self) -> bool:
        """Whether numbers travel as bytes."""
        return self in {Encoding.V2_BINARY, Encoding.OCTETS, Encoding.BASE64_JSON}


def request(encoding: Encoding, batch: Floats) -> tuple[dict[str, str], bytes]:
    """Headers and body that ask for the answer to `batch`, [N, ...] float32."""
    if encoding is Encoding.V2_BINARY:
        tensor = {
            "name": INPUT,
            "datatype": "FP32",
            "shape": list(batch.shape),
            "parameters": {"binary_data_size": batch.nbytes},
        }
        head = json.dumps({"inputs": [tensor], "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}]}).encode()
        return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}, head + batch.tobytes()
    if encoding is Encoding.OCTETS:
        return {"Content-Type": "application/octet-stream"}, batch.tobytes()
    return {"Content-Type": "application/json"}, json.dumps(_document(encoding, batch)).encode()


def _document(encoding: Encoding, batch: Floats) -> dict[str, Any]:
    if encoding is Encoding.V2_JSON:
        return {"inputs": [{"name": INPUT, "datatype": "FP32", "shape": list(batch.shape), "data": _short(batch.ravel())}]}
    if encoding is Encoding.BASE64_JSON:
        return {INPUT: [base64.b64encode(row.tobytes()).decode() for row in batch]}
    name = "inputs" if encoding is Encoding.MLFLOW_JSON else INPUT
    return {name: [_short(row) for row in batch]}


def answer(encoding: Encoding, head: bytes, body: bytes) -> Floats:
    """The numbers of an answer, flat. `head` is the status line and the headers.

    Raises:
        ValueError: The answer has another form.
    """
    try:
        if encoding is Encoding.OCTETS:
            return np.frombuffer(body, np.float32)
        length = _header(head, _HEADER_LENGTH) if encoding is Encoding.V2_BINARY else None
        if length is not None:
            return np.frombuffer(body, np.float32, offset=int(length))
        return np.asarray(_values(json.loads(body)), np.float32).ravel()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"not an answer in {encoding} ({body[:200]!r})") from error


def _values(document: Any) -> Any:
    """The numbers in whichever JSON a server answers: a list, MLflow's `predictions`, or the protocol's `outputs`."""
    if isinstance(document, list):
        return document
    if "predictions" in document:
        found = document["predictions"]
        return found[OUTPUT] if isinstance(found, dict) else found
    return document["outputs"][0]["data"]


def _header(head: bytes, name: str) -> str | None:
    for line in head.decode("latin-1").split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _short(values: Floats) -> list[float]:
    """Each number in the fewest digits that give the float32 back."""
    return [float(str(value)) for value in values]
