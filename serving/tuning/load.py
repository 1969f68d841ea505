"""A load on the sockets of workers, light enough to run beside them: one event loop, one request per connection at a time.

Closed loop: each connection asks again when it is answered. Open loop: requests are due at the times of a Poisson process;
one for which no connection is free waits here, and its latency counts from when it was due (a loop that stops asking
while the server stalls would not see the stall: https://www.scylladb.com/2021/04/22/on-coordinated-omission/).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import httptools
import numpy as np
import uvloop

_GRACE_S = 5.0
_SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked, and how often.

    Attributes:
        connections: Connections kept open, spread evenly over the workers.
        rate_per_s: Arrivals per second of an open loop; None is a closed loop.
        seconds: How long to measure, after `warmup_s`.
    """

    connections: int
    seconds: float
    warmup_s: float
    rate_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """What came of it; times in milliseconds.

    Attributes:
        requests_per_s: Answers per second.
        first_failure: What went wrong first; empty if nothing did.
        first_answer: The body of one answer, for whoever wants to check it.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    num_failed: int
    first_failure: str
    first_answer: bytes


def run_load(sockets: Sequence[str], path: str, headers: Mapping[str, str], body: bytes, load: Load) -> LoadResult:
    """Put the load on the sockets, and wait for its end. Failures are counted, not raised."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {path} HTTP/1.1\r\nhost: worker\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(sockets, request, load))


@dataclass(slots=True)
class _Record:
    """Latencies of the measured time."""

    begins: float
    ends: float
    latencies_s: list[float] = field(default_factory=list)
    num_answered: int = 0
    num_failed: int = 0
    first_failure: str = ""
    first_answer: bytes = b""

    def answered(self, due: float, now: float) -> None:
        self.num_answered += self.begins <= now < self.ends
        if self.begins <= due < self.ends:
            self.latencies_s.append(now - due)

    def failed(self, what: str) -> None:
        self.num_failed += 1
        self.first_failure = self.first_failure or what


class _Connection(asyncio.Protocol):
    """Sends the one request whenever it is told to."""

    def __init__(self, request: bytes, record: _Record, on_idle: Any) -> None:
        self._request, self._record, self._on_idle = request, record, on_idle
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._due: float | None = None
        self._body = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, due: float) -> None:
        self._due = due
        self._transport.write(self._request)

    @property
    def due(self) -> float | None:
        """When the request that is under way was due."""
        return self._due

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self._record.first_answer or self._parser.get_status_code() != 200:
            self._body += body

    def on_message_complete(self) -> None:
        due, self._due = self._due, None
        assert due is not None
        if self._parser.get_status_code() == 200:
            self._record.answered(due, time.perf_counter())
            self._record.first_answer = self._record.first_answer or self._body
        else:
            self._record.failed(f"{self._parser.get_status_code()} {self._body[:200].decode(errors='replace')}")
        self._body = b""
        self._on_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due is not None:
            self._due = None
            self._record.failed(f"the worker closed the connection ({exc or 'end of stream'})")

    def close(self) -> None:
        self._due = None
        self._transport.close()


async def _run(sockets: Sequence[str], request: bytes, load: Load) -> LoadResult:
    begins = time.perf_counter() + load.warmup_s
    record = _Record(begins=begins, ends=begins + load.seconds)
    source = _Closed(record.ends) if load.rate_per_s is None else _Open(record, load.rate_per_s)
    loop = asyncio.get_running_loop()
    connections = []
    for path in islice(cycle(sockets), load.connections):
        try:
            _, connection = await loop.create_unix_connection(lambda: _Connection(request, record, source.idle), path)
        except OSError as error:
            record.failed(f"no connection to a worker ({error})")
            continue
        connections.append(connection)
    for connection in connections:
        source.idle(connection)
    await source.feed()
    while any(connection.due is not None for connection in connections) and time.perf_counter() < record.ends + _GRACE_S:
        await asyncio.sleep(0.01)
    for due in (*(c.due for c in connections if c.due is not None), *source.waiting):
        record.answered(due, time.perf_counter())  # not answered yet: it has taken at least this long
    for connection in connections:
        connection.close()
    p50, p99 = np.percentile(record.latencies_s, [50, 99]) * 1000 if record.latencies_s else (np.inf, np.inf)
    if not record.latencies_s:
        record.first_failure = record.first_failure or "no request was answered"
    return LoadResult(
        requests_per_s=record.num_answered / load.seconds,
        p50_ms=float(p50),
        p99_ms=float(p99),
        num_failed=record.num_failed,
        first_failure=record.first_failure,
        first_answer=record.first_answer,
    )


class _Closed:
    """Every connection asks again at once."""

    def __init__(self, ends: float) -> None:
        self._ends = ends
        self.waiting: Sequence[float] = ()

    def idle(self, connection: _Connection) -> None:
        now = time.perf_counter()
        if now < self._ends:
            connection.send(now)

    async def feed(self) -> None:
        await asyncio.sleep(self._ends - time.perf_counter())


class _Open:
    """Requests come when they are due."""

    def __init__(self, record: _Record, rate_per_s: float) -> None:
        self._ends = record.ends
        self._arrivals = _arrivals(time.perf_counter(), rate_per_s)
        self._idle: deque[_Connection] = deque()
        self.waiting: deque[float] = deque()

    def idle(self, connection: _Connection) -> None:
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            self._idle.append(connection)

    async def feed(self) -> None:
        for due in self._arrivals:
            if due >= self._ends:
                break
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            else:
                await asyncio.sleep(0)
            if self._idle:
                self._idle.popleft().send(due)
            else:
                self.waiting.append(due)


def _arrivals(start: float, rate_per_s: float) -> Iterator[float]:
    gaps = random.Random(_SEED)  # noqa: S311  the same arrivals for every layout
    due = start
    while True:
        due += gaps.expovariate(rate_per_s)
        yield due
