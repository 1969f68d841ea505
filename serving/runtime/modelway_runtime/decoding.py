"""Requests that take long to decode (images, long texts), one after the other in a thread beside the event loop.

Pillow and tokenizers work without Python's lock, so the loop and the model go on meanwhile. What waits here is bounded as
the model's queue is: by number, by bytes, and by the time that it is expected to take.

Lives on one event loop; only `decode` is called elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .batcher import Limits, overloaded, too_late
from .messages import Answer, Decoded

_FEW = 4


@dataclass(slots=True)
class Raw:
    """One request on its way to be decoded.

    Attributes:
        arrived: On the clock of `time.monotonic`.
        deadline: On the same; nobody waits for the answer after it.
        respond: Takes what became of it, once, on the event loop.
        cancelled: Nobody waits any more.
    """

    headers: Mapping[str, str]
    body: bytes
    arrived: float
    deadline: float
    respond: Callable[[Decoded | Answer], None]
    cancelled: bool = False


class Decoding:
    """The queue in front of the thread. `on_hang` is called on the loop when one request takes `Limits.hang_s`."""

    def __init__(
        self,
        decode: Callable[[Mapping[str, str], bytes], Decoded | Answer],
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        on_hang: Callable[[], None],
    ) -> None:
        self._decode = decode
        self._limits = limits
        self._loop = loop
        self._on_hang = on_hang
        self._queue: deque[Raw] = deque()
        self._queued_bytes = 0
        self._busy = False
        self._last_s: deque[float] = deque(maxlen=_FEW)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoding")

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, raw: Raw) -> None:
        """Decode it when its turn comes; what there is no place for is answered 429 at once."""
        limits, num_bytes = self._limits, len(raw.body)
        if (
            len(self._queue) >= limits.queue_size
            or (self._queue and self._queued_bytes + num_bytes > limits.queue_bytes)
            or len(self._queue) * self._expected_s() > limits.queue_s
        ):
            raw.respond(overloaded(len(self._queue)))
            return
        self._queue.append(raw)
        self._queued_bytes += num_bytes
        if not self._busy:
            self._next()

    def _expected_s(self) -> float:
        """What one takes at least. The fastest of the last few counts: one that was held up says nothing."""
        return min(self._last_s) if len(self._last_s) == _FEW else 0.0

    def _next(self) -> None:
        self._busy = False
        while self._queue and not self._busy:
            raw = self._queue.popleft()
            self._queued_bytes -= len(raw.body)
            now = time.monotonic()
            if raw.cancelled:
                continue
            if now > raw.deadline:
                raw.respond(too_late(now - raw.arrived))
                continue
            self._busy = True
            self._start(raw, now)

    def _start(self, raw: Raw, started: float) -> None:
        watch = self._loop.call_later(self._limits.hang_s, self._on_hang)
        running = self._thread.submit(self._decode, raw.headers, raw.body)

        def done() -> None:
            watch.cancel()
            self._last_s.append(time.monotonic() - started)
            # The next one first: the thread need not wait while the loop hands this one on.
            self._next()
            if not raw.cancelled:
                raw.respond(running.result())

        running.add_done_callback(lambda _: self._loop.call_soon_threadsafe(done))
