"""The runtime's core around a model that gives back what it gets, for tests of what may be asked and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.protocols import Answer, ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec

V2 = {"x-modelway-protocol": "v2-infer"}
V1 = {"x-modelway-protocol": "v1-predict"}
PREDICTIONS = {"x-modelway-protocol": "predictions"}
LENGTH = "inference-header-content-length"
OCTETS = "application/octet-stream"


class Echo:
    """Answers its inputs, in their order."""

    def __init__(self, *outputs: str) -> None:
        self.outputs = outputs

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip(self.outputs, inputs, strict=True))


def echo(*specs: Spec, max_rows: int = 64, **more: Any) -> Core:
    outputs = tuple(Spec(f"{spec.name}_out", spec.datatype, spec.shape) for spec in specs)
    return Core(ModelInfo("m", "1", specs, outputs, max_rows, **more), Echo(*[spec.name for spec in outputs]))


def ask(core: Core, body: object, headers: dict[str, str]) -> Answer:
    return core.handle([(headers, body if isinstance(body, bytes) else json.dumps(body).encode())])[0]


def error(answer: Answer, status: int) -> str:
    assert answer.status == status, answer
    (message,) = json.loads(answer.body).values()
    assert "\n" not in message
    assert len(message) < 400
    return str(message)
