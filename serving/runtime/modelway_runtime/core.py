"""Requests in, answers out: decode -> batch -> run -> split -> encode. One bad request never fails another.

8 requests, the third malformed      7 run as one batch; the third gets its own 400
one of the 7 has NaN in its bytes    6 run as one batch; that one gets a 400
the batch of 6 throws                each of the 6 runs alone; only those that throw get a 500
one answer of them is not finite     that one gets a 500

What is checked of numbers is checked once for a batch; only a batch with something wrong is looked at request by request.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .backends import Backend
from .errors import RequestError
from .negotiation import takes_long
from .protocols import Answer, Decoded, Headers, ModelInfo, decode, error_answer
from .tensors import Array, Spec

_logger = logging.getLogger("modelway")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Request = tuple[Headers, "memoryview | bytes | bytearray"]
_Job = tuple[int, Decoded]


class Core:
    """Answers requests with one loaded model. Safe for threads: the model runs one batch at a time."""

    def __init__(self, model: ModelInfo, backend: Backend, *, check_finite: bool = True) -> None:
        self._model = model
        self._backend = backend
        self._check_finite = check_finite
        self._running = threading.Lock()
        self._float_inputs = tuple(index for index, spec in enumerate(model.inputs) if spec.dtype.kind == "f")

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order. Never raises for what a request or the model does."""
        decoded = [self.decode(headers, body) for headers, body in requests]
        answers = iter(self.run([request for request in decoded if isinstance(request, Decoded)]))
        return [next(answers) if isinstance(request, Decoded) else request for request in decoded]

    def decode(self, headers: Headers, body: memoryview | bytes | bytearray) -> Decoded | Answer:
        """What a request asks of the model, or its answer if it needs none or asks for something wrong. Never raises."""
        try:
            return decode(self._model, headers, memoryview(body))
        except RequestError as error:
            return error_answer(error)

    def takes_long(self, headers: Headers, body: bytes) -> bool:
        """Whether to decode a request may hold up others that arrive meanwhile."""
        return takes_long(self._model, headers, memoryview(body))

    def run(self, requests: Sequence[Decoded]) -> list[Answer]:
        """One answer per request, in order. Never raises for what the model does."""
        answers: list[Answer | None] = [None] * len(requests)
        for group in _groups(list(enumerate(requests)), self._model.max_rows):
            self._run(group, answers)
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def _run(self, group: Sequence[_Job], answers: list[Answer | None]) -> None:
        inputs = _batch([decoded for _, decoded in group])
        if not all(np.isfinite(inputs[index]).all() for index in self._float_inputs):
            finite = [job for job in group if not self._refuse_if_not_finite(job, answers)]
            if finite:
                self._run(finite, answers)
            return
        try:
            with self._running:
                outputs = self._execute(inputs)
        except Exception as error:  # a model may raise anything, and only the requests that make it do so may suffer
            if len(group) > 1:
                for job in group:
                    self._run([job], answers)
                return
            answers[group[0][0]] = _failed(group[0][1], f"the model failed on this request ({type(error).__name__})")
            return
        suspects = self._not_finite(outputs)
        start = 0
        for index, decoded in group:
            stop = start + decoded.num_rows
            own = {name: array[start:stop] for name, array in outputs.items()}
            answers[index] = self._encode(decoded, own, self._not_finite(own) if suspects else "")
            start = stop

    def _refuse_if_not_finite(self, job: _Job, answers: list[Answer | None]) -> bool:
        index, decoded = job
        for spec, array in zip(self._model.inputs, decoded.inputs, strict=True):
            if spec.dtype.kind == "f" and not np.isfinite(array).all():
                answers[index] = error_answer(RequestError(400, f"input {spec.name}: contains NaN or infinity"))
                return True
        return False

    def _execute(self, inputs: tuple[Array, ...]) -> dict[str, Array]:
        results = self._backend.run(inputs)
        return {spec.name: _checked(spec, np.asarray(results[spec.name]), inputs[0].shape[0]) for spec in self._model.outputs}

    def _not_finite(self, outputs: Mapping[str, Array]) -> str:
        """What is not finite in outputs, for a message; empty if nothing is."""
        if self._check_finite:
            for name, array in outputs.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    return f"output {name}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite"
        return ""

    def _encode(self, decoded: Decoded, outputs: Mapping[str, Array], not_finite: str) -> Answer:
        if not_finite:
            return _failed(decoded, f"model output is not finite ({not_finite})")
        try:
            return decoded.encode(outputs)
        except Exception as error:  # the other answers of the batch must still go out
            return _failed(decoded, f"the answer could not be encoded ({type(error).__name__})")


def _failed(decoded: Decoded, message: str) -> Answer:
    """The answer 500, with an id under which the log says the same; no data of the request is in either."""
    error_id = decoded.request_id if _SAFE_ID.fullmatch(decoded.request_id) else uuid.uuid4().hex
    _logger.error("error %s: a request of %d rows: %s", error_id, decoded.num_rows, message)
    return error_answer(RequestError(500, f"{message}; error id {error_id}"))


def _checked(spec: Spec, array: Array, num_rows: int) -> Array:
    if not spec.fits(array.shape) or array.shape[0] != num_rows or array.dtype != spec.dtype:
        raise RuntimeError(f"output {spec.name} is {array.dtype}{list(array.shape)}, the signature says {spec.datatype}{list(spec.shape)}")
    return array


def _groups(jobs: Sequence[_Job], max_rows: int) -> list[list[_Job]]:
    """Requests that can run as one batch: the same shapes behind the batch dimension, together at most `max_rows` rows."""
    groups: list[list[_Job]] = []
    open_groups: dict[Any, tuple[list[_Job], int]] = {}
    for job in jobs:
        key = tuple([array.shape[1:] for array in job[1].inputs])
        group, num_rows = open_groups.get(key, ([], 0))
        if not group or num_rows + job[1].num_rows > max_rows:
            group, num_rows = [], 0
            groups.append(group)
        group.append(job)
        open_groups[key] = (group, num_rows + job[1].num_rows)
    return groups


def _batch(requests: Sequence[Decoded]) -> tuple[Array, ...]:
    """One array per input. A single request's arrays are used as they are, if they are aligned; others are copied once."""
    if len(requests) == 1:
        return tuple([array if array.flags.aligned else array.copy() for array in requests[0].inputs])
    return tuple([np.concatenate(arrays) for arrays in zip(*[request.inputs for request in requests], strict=True)])
