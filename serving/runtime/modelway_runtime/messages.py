"""What the protocols have in common: the model that is asked, a valid request, an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from .errors import RequestError
from .jsons import dumps
from .labels import Labels
from .tensors import Array, Spec
from .text_input import TextInput

JSON = "application/json"
BINARY = "application/octet-stream"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
REQUEST_ID_HEADER = "x-request-id"

Headers = Mapping[str, str]  # names in lower case
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ModelInfo:
    """What a protocol needs to know of the model.

    Attributes:
        max_rows: Rows that one request, and one run, may have.
        transforms: Content type -> what makes the model's inputs of a body of that type; see `negotiation.Transform`.
        texts: What makes the inputs of a tensor of texts, if the model declares one.
        labels: Output name -> the names of its classes, where the model declares them.
        memory: Room for what a protocol wants to remember of the model's requests; it has to bound it.
    """

    name: str
    version: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    max_rows: int
    transforms: Mapping[str, Callable[[ModelInfo, memoryview], tuple[Array, ...]]] = field(default_factory=dict)
    texts: TextInput | None = None
    labels: Mapping[str, Labels] = field(default_factory=dict)
    memory: dict[bytes, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def inputs_by_name(self) -> Mapping[str, Spec]:
        """Input name -> spec."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def accepted(self) -> Mapping[str, Spec]:
        """Name -> spec of what a request may send: the inputs, and the texts that some become of."""
        return self.inputs_by_name if self.texts is None else {**self.inputs_by_name, self.texts.name: self.texts.spec}

    def accepted_as(self, name: str, num_dimensions: int) -> Spec:
        """The spec of a tensor that a request sends. Raises RequestError 400 for a name that there is not."""
        if self.texts is not None and name == self.texts.name:
            return self.texts.spec_for(num_dimensions)
        spec = self.inputs_by_name.get(name)
        if spec is None:
            raise RequestError(400, unknown("input", tuple(self.accepted.values())))
        return spec

    @cached_property
    def outputs_by_name(self) -> Mapping[str, Spec]:
        """Output name -> spec."""
        return {spec.name: spec for spec in self.outputs}

    @cached_property
    def takes_floats(self) -> bool:
        """Whether every input is a float, so that it does not matter whether JSON says 1 or 1.0."""
        return all(spec.dtype.kind == "f" for spec in self.inputs)

    @cached_property
    def v2_head(self) -> bytes:
        """How each of the model's v2 answers begins."""
        return dumps({"model_name": self.name, "model_version": self.version})[:-1]


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = _NO_HEADERS


class Decoded(NamedTuple):
    """A valid request.

    Attributes:
        inputs: Arrays in the order of the signature, all with the same number of rows. Whether their numbers are
            finite is checked once for the whole batch, by the core.
        encode: Output name -> array, in the order of the signature, to the answer.
        request_id: The gateway's id of the request; what the log of a failure calls it. May be empty.
    """

    inputs: tuple[Array, ...]
    encode: Callable[[Mapping[str, Array]], Answer]
    request_id: str = ""

    @property
    def num_rows(self) -> int:
        """Rows of the batch that this request brings."""
        return int(self.inputs[0].shape[0])


Decoder = Callable[[ModelInfo, Headers, memoryview], "Decoded | Answer"]


def error_answer(error: RequestError) -> Answer:
    """The answer to a request that cannot be answered otherwise."""
    return Answer(error.status, dumps({"error": error.message}))


def complete(model: ModelInfo, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
    """The arrays in the signature's order, with those that texts make instead of the texts.

    Raises RequestError unless they are all of them, with equally many, acceptable rows.
    """
    if model.texts is not None and model.texts.name in arrays:
        arrays = model.texts.replaced(arrays)
    missing = [spec.name for spec in model.inputs if spec.name not in arrays]
    if missing:
        raise RequestError(400, f"missing input {', '.join(missing)}; expected {names(model.inputs)}")
    ordered = tuple([arrays[spec.name] for spec in model.inputs])
    num_rows = ordered[0].shape[0]
    if len(ordered) > 1 and any(array.shape[0] != num_rows for array in ordered):
        counts = sorted({array.shape[0] for array in ordered})
        raise RequestError(400, f"inputs differ in their number of rows ({', '.join(map(str, counts))})")
    check_rows(model, num_rows)
    return ordered


def check_rows(model: ModelInfo, num_rows: int) -> None:
    """Raise RequestError 413 for more rows than a request may have."""
    if num_rows > model.max_rows:
        raise RequestError(413, f"too many rows: at most {model.max_rows} a request, got {num_rows if num_rows < 1 << 63 else 'more'}")


def unknown(side: str, specs: tuple[Spec, ...]) -> str:
    """What to say of a tensor name that the signature lacks."""
    return f"unknown {side} name; expected {names(specs)}"


def names(specs: tuple[Spec, ...]) -> str:
    """The names of tensors, for a message."""
    return ", ".join(spec.name for spec in specs)
