"""The signature of a model: names, dtypes and shapes of its inputs and outputs, batch dimension free.

Datatypes are those of the Open Inference Protocol v2
(https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.errors import UsageError

# Protocol name -> numpy dtype name. numpy has no bfloat16: BF16 is float32 here and is rounded on the wire. BYTES are
# object arrays of `str`: the engines' strings are UTF-8 text.
NUMPY_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "float32",
    "BYTES": "object",
}
# The way back: what an array of that dtype is called.
PROTOCOL_DTYPES: Mapping[str, str] = {numpy: protocol for protocol, numpy in NUMPY_DTYPES.items() if protocol != "BF16"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor.

    Attributes:
        name: The tensor's name in requests and answers.
        datatype: An Open Inference Protocol datatype, for example `FP32`.
        shape: Dimensions; -1 is free. The first one is the batch and always -1.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in NUMPY_DTYPES:
            raise UsageError(f"unsupported datatype of tensor {self.name} ({self.datatype!r})", f"Use one of {', '.join(NUMPY_DTYPES)}.")
        if not self.shape or self.shape[0] != -1 or any(d != -1 and d < 1 for d in self.shape):
            raise UsageError(f"invalid shape of tensor {self.name} ({list(self.shape)})", "The first dimension is the batch: [-1, ...].")

    def to_json(self) -> dict[str, Any]:
        """As in the protocol's model metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `to_json`."""
        return cls(name=str(data["name"]), datatype=str(data["datatype"]), shape=tuple(int(d) for d in data["shape"]))

    def __str__(self) -> str:
        return f"{self.name}: {self.datatype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [spec.name for spec in specs]
            if not names or len(set(names)) != len(names):
                raise UsageError(f"{side} of a signature must be at least one, with distinct names ({names})")

    def to_json(self) -> dict[str, Any]:
        """As stored in `signature.json` and in the ledger."""
        return {"inputs": [s.to_json() for s in self.inputs], "outputs": [s.to_json() for s in self.outputs]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""
        return cls(
            inputs=tuple(TensorSpec.from_json(s) for s in data["inputs"]), outputs=tuple(TensorSpec.from_json(s) for s in data["outputs"])
        )


def incompatibilities(old: Signature, new: Signature) -> tuple[str, ...]:
    """Why a client written for `old` could break on `new`; empty if it cannot.

    Inputs must be accepted as before (a fixed dimension may become free); every old output must still be
    there with the same datatype and shape. Further outputs are fine.
    """
    problems = [*_tensor_problems("input", old.inputs, new.inputs, free_is_wider=True)]
    known = {spec.name for spec in old.inputs}
    problems += [f"input {spec.name} is new and required" for spec in new.inputs if spec.name not in known]
    problems += _tensor_problems("output", old.outputs, new.outputs, free_is_wider=False)
    return tuple(problems)


def _tensor_problems(side: str, old: Sequence[TensorSpec], new: Sequence[TensorSpec], *, free_is_wider: bool) -> list[str]:
    by_name = {spec.name: spec for spec in new}
    problems = []
    for spec in old:
        other = by_name.get(spec.name)
        if other is None:
            problems.append(f"{side} {spec.name} is gone")
        elif other.datatype != spec.datatype:
            problems.append(f"{side} {spec.name} was {spec.datatype}, is {other.datatype}")
        elif not _shape_fits(spec.shape, other.shape, free_is_wider=free_is_wider):
            problems.append(f"{side} {spec.name} was {list(spec.shape)}, is {list(other.shape)}")
    return problems


def _shape_fits(old: tuple[int, ...], new: tuple[int, ...], *, free_is_wider: bool) -> bool:
    return len(old) == len(new) and all(o == n or (free_is_wider and n == -1) for o, n in zip(old, new, strict=True))
