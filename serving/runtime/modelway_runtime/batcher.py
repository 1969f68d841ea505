"""Batches of what is waiting: never a pause to fill one, never a request alone while others wait.

While the model runs, requests queue; when it is done, as many of them as a batch may hold run together. An idle
model takes a request at once. Requests that arrive in the same turn of the event loop share a batch.

A batch runs in a thread of its own, so that the loop keeps reading. Handing it over and back costs more than a small
model does, so batches that are expected to be short run on the loop itself.

Lives on one event loop; only `Core.run` is called elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .core import Core
from .errors import RequestError
from .measures import Measures
from .messages import Answer, Decoded, error_answer

_SMOOTHING = 0.2
_FEW = 4
_RETRY_AFTER = {"retry-after": "1"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one worker takes on.

    Attributes:
        batch_size: Requests that run together, at most.
        queue_size: Requests that may wait; more are answered 429.
        queue_s: Seconds that a request is expected to wait; those that would wait for longer are answered 429. A queue
            that is bounded by number only makes everybody wait for long, and goes on doing so after an overload has ended.
        queue_bytes: Bytes of their bodies that may wait; more are answered 429.
        body_bytes: Larger request bodies are answered 413.
        hang_s: A batch that runs for longer means that the model hangs.
        inline_below_s: Batches that are expected to take less time run on the event loop.
    """

    batch_size: int = 32
    queue_size: int = 1000
    queue_s: float = 5.0
    queue_bytes: int = 256 << 20
    body_bytes: int = 64 << 20
    hang_s: float = 120.0
    inline_below_s: float = 0.002


@dataclass(slots=True)
class Job:
    """One request on its way through the queue.

    Attributes:
        deadline: On the clock of `time.monotonic`; nobody waits for the answer after it.
        respond: Takes the answer, once, on the event loop.
        cancelled: Nobody waits any more.
    """

    request: Decoded
    num_bytes: int
    arrived: float
    deadline: float
    respond: Callable[[Answer], None]
    cancelled: bool = False


class Batcher:
    """The queue in front of one model. `on_hang` is called on the loop when a batch has run for `Limits.hang_s`."""

    def __init__(
        self, core: Core, limits: Limits, loop: asyncio.AbstractEventLoop, measures: Measures, on_hang: Callable[[], None]
    ) -> None:
        self._core = core
        self._limits = limits
        self._loop = loop
        self._measures = measures
        self._on_hang = on_hang
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._busy = False  # a batch runs, or is about to
        self._expected_s = float("inf")
        self._last_s: deque[float] = deque(maxlen=_FEW)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def refusal(self, num_bytes: int) -> Answer | None:
        """The answer (429) to a request with a body of that size if the queue has no place for it."""
        limits = self._limits
        if (
            len(self._queue) >= limits.queue_size
            or (self._queue and self._queued_bytes + num_bytes > limits.queue_bytes)
            or self._expected_wait_s() > limits.queue_s
        ):
            return overloaded(len(self._queue))
        return None

    def submit(self, job: Job) -> None:
        """Queue a request for which there is a place."""
        self._queue.append(job)
        self._queued_bytes += job.num_bytes
        if not self._busy:
            self._busy = True
            # Not now: what else has arrived in this turn of the loop goes along.
            self._loop.call_soon(self._run_next)

    def _expected_wait_s(self) -> float:
        """As long as the batches in front take at least. The fastest of the last few counts: one that was held up says nothing."""
        if len(self._queue) < self._limits.batch_size or len(self._last_s) < _FEW:
            return 0.0
        return len(self._queue) // self._limits.batch_size * min(self._last_s)

    def _run_next(self) -> None:
        batch = self._take()
        if not batch:
            self._busy = False
            return
        self._measures.batch_size.observe(len(batch))
        requests = [job.request for job in batch]
        started = time.monotonic()
        for job in batch:
            self._measures.queue_s.observe(started - job.arrived)
        if self._expected_s < self._limits.inline_below_s:
            self._finish(batch, started, self._core.run(requests))
            return
        watch = self._loop.call_later(self._limits.hang_s, self._on_hang)
        running = self._thread.submit(self._core.run, requests)

        def done() -> None:
            watch.cancel()
            self._finish(batch, started, running.result())

        running.add_done_callback(lambda _: self._loop.call_soon_threadsafe(done))

    def _finish(self, batch: list[Job], started: float, answers: list[Answer]) -> None:
        took_s = time.monotonic() - started
        self._measures.run_s.observe(took_s)
        self._last_s.append(took_s)
        self._expected_s = took_s if self._expected_s == float("inf") else self._expected_s + _SMOOTHING * (took_s - self._expected_s)
        if self._queue:
            self._loop.call_soon(self._run_next)
        else:
            self._busy = False
        for job, answer in zip(batch, answers, strict=True):
            job.respond(answer)

    def _take(self) -> list[Job]:
        batch: list[Job] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._limits.batch_size:
            job = self._queue.popleft()
            self._queued_bytes -= job.num_bytes
            if job.cancelled:
                continue
            if now > job.deadline:
                job.respond(too_late(now - job.arrived))
                continue
            batch.append(job)
        return batch


def overloaded(num_waiting: int) -> Answer:
    """The answer (429) to a request for which there is no place."""
    answer = error_answer(RequestError(429, f"the model's queue is full ({num_waiting} requests wait); ask again later"))
    return Answer(answer.status, answer.body, answer.content_type, _RETRY_AFTER)


def too_late(waited_s: float) -> Answer:
    """The answer (504) to a request that waited past its deadline."""
    return error_answer(RequestError(504, f"the request waited {waited_s:.1f} s for the model, longer than its deadline; ask again later"))
