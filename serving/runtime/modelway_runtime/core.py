"""Requests in, answers out: decode -> batch -> run -> split -> encode. One bad request never fails another.

8 requests, the third malformed      7 run as one batch; the third gets its own 400
the batch of 7 throws                each of the 7 runs alone; only those that throw get a 500
one answer of them is not finite     that one gets a 500
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backends import Backend
from .errors import RequestError
from .protocols import Answer, Decoded, Headers, ModelInfo, decode, error_answer
from .tensors import Array

_logger = logging.getLogger("modelway")

Request = tuple[Headers, "memoryview | bytes | bytearray"]
_Job = tuple[int, Decoded]


class Core:
    """Answers requests with one loaded model. Safe for threads: the model runs one batch at a time."""

    def __init__(self, model: ModelInfo, backend: Backend, *, check_finite: bool = True) -> None:
        self._model = model
        self._backend = backend
        self._check_finite = check_finite
        self._running = threading.Lock()

    @property
    def max_rows(self) -> int:
        """Rows that one run may have."""
        return self._model.max_rows

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

    def run(self, requests: Sequence[Decoded]) -> list[Answer]:
        """One answer per request, in order. Never raises for what the model does."""
        answers: list[Answer | None] = [None] * len(requests)
        for group in _groups(list(enumerate(requests)), self._model.max_rows):
            self._run(group, answers)
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def _run(self, group: Sequence[_Job], answers: list[Answer | None]) -> None:
        try:
            with self._running:
                outputs = self._execute(_batch([decoded for _, decoded in group]))
        except Exception as error:  # a model may raise anything, and only the requests that make it do so may suffer
            if len(group) > 1:
                for job in group:
                    self._run([job], answers)
                return
            _logger.error("the model failed on a request of %d rows: %s", group[0][1].num_rows, type(error).__name__)
            answers[group[0][0]] = error_answer(RequestError(500, f"the model failed on this request ({type(error).__name__})"))
            return
        start = 0
        for index, decoded in group:
            stop = start + decoded.num_rows
            answers[index] = self._encode(decoded, {name: array[start:stop] for name, array in outputs.items()})
            start = stop

    def _execute(self, inputs: tuple[Array, ...]) -> dict[str, Array]:
        results = self._backend.run(inputs)
        outputs = {spec.name: np.asarray(results[spec.name]) for spec in self._model.outputs}
        for spec in self._model.outputs:
            array = outputs[spec.name]
            if not spec.fits(array.shape) or array.shape[0] != inputs[0].shape[0] or array.dtype != spec.dtype:
                raise RuntimeError(
                    f"output {spec.name} is {array.dtype}{list(array.shape)}, the signature says {spec.datatype}{list(spec.shape)}"
                )
        return outputs

    def _encode(self, decoded: Decoded, outputs: dict[str, Array]) -> Answer:
        if self._check_finite:
            for name, array in outputs.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    num_bad = int((~np.isfinite(array)).sum())
                    message = f"model output is not finite (output {name}: {num_bad} of {array.size} values are NaN or infinite)"
                    return error_answer(RequestError(500, message))
        try:
            return decoded.encode(outputs)
        except Exception as error:  # the other answers of the batch must still go out
            _logger.error("an answer could not be encoded: %s", type(error).__name__)
            return error_answer(RequestError(500, f"the answer could not be encoded ({type(error).__name__})"))


def _groups(jobs: Sequence[_Job], max_rows: int) -> list[list[_Job]]:
    """Requests that can run as one batch: the same shapes behind the batch dimension, together at most `max_rows` rows."""
    groups: list[list[_Job]] = []
    open_groups: dict[Any, tuple[list[_Job], int]] = {}
    for job in jobs:
        key = tuple(array.shape[1:] for array in job[1].inputs)
        group, num_rows = open_groups.get(key, ([], 0))
        if not group or num_rows + job[1].num_rows > max_rows:
            group, num_rows = [], 0
            groups.append(group)
        group.append(job)
        open_groups[key] = (group, num_rows + job[1].num_rows)
    return groups


def _batch(requests: Sequence[Decoded]) -> tuple[Array, ...]:
    """One array per input. A single request's arrays are used as they are; others are copied once."""
    if len(requests) == 1:
        return requests[0].inputs
    return tuple(np.concatenate(arrays) for arrays in zip(*(request.inputs for request in requests), strict=True))
