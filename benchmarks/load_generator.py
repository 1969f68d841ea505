"""The client process of `benchmarks.http_client`: one measurement per line of JSON on stdin, its result on stdout.

The client shares the cores with the server, so what it does for each answer is little: requests are built before, an answer
is searched for its length, and decoded only when its turn to be checked comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.encodings import Encoding, Floats, answer, request
from benchmarks.http_client import GRACE_S, Load, Measured, Target
from benchmarks.workloads import is_close, load_samples

_CHECK_EVERY = 20
_SEED = 1
_CLOCK_MONOTONIC, _TFD_NONBLOCK, _TFD_TIMER_ABSTIME = 1, os.O_NONBLOCK, 1


class Run:
    """One measurement while it runs: what to send, and what came back."""

    def __init__(self, encoding: Encoding, requests: Sequence[bytes], expected: Floats, *, start: float, until: float) -> None:
        self.encoding, self.requests, self.expected = encoding, requests, expected
        self.start, self.until = start, until
        self.latencies_s: list[float] = []
        self.num_answers = 0
        self.failures: list[str] = []

    def answered(self, item: int, since: float, data: bytes, head_end: int) -> None:
        """Count an answer to sample `item` that was due at `since`."""
        now = time.perf_counter()
        self.num_answers += 1
        if data[9:12] == b"200":
            if self.start <= since <= self.until:
                self.latencies_s.append(now - since)
            if self.num_answers % _CHECK_EVERY == 1:
                self._check(item, data[:head_end], data[head_end + 4 :])
        else:
            self.failures.append(f"status {data[9:12].decode(errors='replace')}: {data[head_end + 4 :][:200].decode(errors='replace')}")

    def _check(self, item: int, head: bytes, body: bytes) -> None:
        try:
            right = is_close(answer(self.encoding, head, dechunked(body) if is_chunked(head) else body), self.expected[item])
        except ValueError as error:
            self.failures.append(f"wrong numbers: {error}")
            return
        if not right:
            self.failures.append(f"wrong numbers: {body[:200].decode(errors='replace')}")


class Connection(asyncio.Protocol):
    """One connection with at most one request in flight. `idle` is called when it is answered."""

    def __init__(self, run: Run, first_item: int, idle: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self._run, self._item, self._idle, self._lost = run, first_item, idle, lost
        self._partial = bytearray()
        self._needed = 0
        self._since = 0.0
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        """asyncio: it is open."""
        self._transport = transport

    def send(self, since: float) -> None:
        """Send the next sample; latency counts from `since`."""
        self._item = item = (self._item + 1) % len(self._run.requests)
        self._since = since
        self.busy = True
        self._transport.write(self._run.requests[item])

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            head = data[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                stop = head.find(b"\r\n", at + 2)
                self._needed = end + 4 + int(head[at + 17 : stop if stop >= 0 else end])
                complete = len(data) >= self._needed
            elif is_chunked(head):
                complete = data.endswith(b"\r\n0\r\n\r\n") or data[end:] == b"\r\n\r\n0\r\n\r\n"
            else:
                self._fail(f"an answer without a length: {head!r}")
                return
            if complete:
                self._partial.clear()
                self._needed = 0
                self.busy = False
                self._run.answered(self._item, self._since, data, end)
                self._idle(self)
                return
        if not self._partial:
            self._partial += data

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: it is closed."""
        if exc or self.busy:
            self._run.failures.append(f"connection lost: {exc}")
        self._lost(self)

    def _fail(self, what: str) -> None:
        self._run.failures.append(what)
        self.busy = False
        self._transport.close()

    def close(self) -> None:
        """End it."""
        self.busy = False
        self._transport.close()


def is_chunked(head: bytes) -> bool:
    """Whether the answer has the chunked transfer coding of RFC 9112."""
    return b"transfer-encoding: chunked" in head.lower()


def dechunked(body: bytes) -> bytes:
    """The content of a complete chunked body (RFC 9112, 7.1); trailers are not expected."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


class AlarmClock:
    """A timer of microseconds: event loops round theirs to milliseconds, which would add half of one to each latency."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop, self._ring = loop, ring
        loop.add_reader(self._fd, self._rang)

    def set(self, at: float) -> None:
        """Ring at that time of `time.perf_counter`, which is Linux's CLOCK_MONOTONIC."""
        seconds, fraction = divmod(at, 1.0)
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, struct.pack("qqqq", 0, 0, int(seconds), int(fraction * 1e9) + 1), None)

    def _rang(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._ring()

    def close(self) -> None:
        """Give the timer back."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


async def _connect(
    run: Run, target: Target, num: int, idle: Callable[[Connection], None], lost: Callable[[Connection], None]
) -> list[Connection]:
    loop = asyncio.get_running_loop()
    connections = []
    for index in range(num):
        connection = Connection(run, index, idle, lost)
        if target.sockets:
            await loop.create_unix_connection(lambda made=connection: made, target.sockets[index % len(target.sockets)])  # type: ignore[misc]
        else:
            await loop.create_connection(lambda made=connection: made, "127.0.0.1", target.port)  # type: ignore[misc]
        connections.append(connection)
    return connections


async def _closed_loop(run: Run, target: Target, num: int) -> None:
    """Every connection sends again as soon as it is answered, until the end."""
    done = asyncio.Event()
    open_connections: set[Connection] = set()

    def lost(connection: Connection) -> None:
        open_connections.discard(connection)
        if not open_connections:
            done.set()

    def idle(connection: Connection) -> None:
        now = time.perf_counter()
        if now < run.until:
            connection.send(now)
        else:
            connection.close()

    connections = await _connect(run, target, num, idle, lost)
    open_connections.update(connections)
    for connection in connections:
        connection.send(time.perf_counter())
    await _wait(done, run, lambda: sum(each.busy for each in open_connections))
    for connection in connections:
        connection.close()


async def _open_loop(run: Run, target: Target, load: Load, due: Sequence[float]) -> None:
    """Requests are sent when they are due; one for which no connection is free waits, and its clock runs."""
    waiting: deque[float] = deque()
    free: list[Connection] = []
    done = asyncio.Event()
    alive = load.connections
    at = 0

    def finished() -> bool:
        return at == len(due) and not waiting and len(free) == alive

    def idle(connection: Connection) -> None:
        if waiting:
            connection.send(waiting.popleft())
            return
        free.append(connection)
        if finished():
            done.set()

    def lost(connection: Connection) -> None:
        nonlocal alive
        alive -= 1
        if connection in free:
            free.remove(connection)
        if not alive or finished():
            done.set()

    def ring() -> None:
        nonlocal at
        now = time.perf_counter()
        while at < len(due) and due[at] <= now:
            since = due[at]
            at += 1
            if free:
                free.pop().send(since)
            else:
                waiting.append(since)
        if at < len(due):
            clock.set(due[at])

    free += await _connect(run, target, load.connections, idle, lost)
    connections = list(free)
    clock = AlarmClock(asyncio.get_running_loop(), ring)
    try:
        clock.set(due[0])
        await _wait(done, run, lambda: len(due) - at + len(waiting) + alive - len(free))
    finally:
        clock.close()
        for connection in connections:
            connection.close()


async def _wait(done: asyncio.Event, run: Run, missing: Callable[[], int]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), run.until - time.perf_counter() + GRACE_S)
    if num := missing():
        run.failures.append(f"{num} requests not answered until {GRACE_S:g} s after the end")


@cache
def _prepared(samples: str, encoding: str, path: str, headers: tuple[tuple[str, str], ...]) -> tuple[list[bytes], Floats]:
    inputs, expected = load_samples(Path(samples))
    requests = []
    for row in inputs:
        own, body = request(Encoding(encoding), row[None])
        all_headers = {"Host": "localhost", **own, "Content-Length": str(len(body)), **dict(headers)}
        head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
        requests.append(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return requests, expected


async def _measure(target: Target, load: Load) -> Measured:
    requests, expected = _prepared(target.samples, target.encoding, target.path, tuple(target.headers.items()))
    begin = time.perf_counter()
    start = begin + load.warmup_s
    run = Run(Encoding(target.encoding), requests, expected, start=start, until=start + load.duration_s)
    cpu_before = time.process_time()
    gc.disable()
    try:
        if load.rate_per_s:
            gaps = np.random.default_rng(_SEED).exponential(1 / load.rate_per_s, int(1.2 * load.rate_per_s * (run.until - begin)) + 10)
            due = begin + 0.05 + np.cumsum(gaps)  # connections are opened first
            await _open_loop(run, target, load, due[due < run.until].tolist())
        else:
            await _closed_loop(run, target, load.connections)
    except OSError as error:
        run.failures.append(f"no connection: {error}")
    finally:
        gc.enable()
        gc.collect()
    spent = time.perf_counter() - begin
    if not run.latencies_s:
        run.failures.append("no request was answered within the measurement")
    p50_s, p99_s = np.percentile(run.latencies_s or [0.0], [50, 99])
    return Measured(
        requests_per_s=len(run.latencies_s) / load.duration_s,
        p50_ms=float(p50_s) * 1000,
        p99_ms=float(p99_s) * 1000,
        failed=len(run.failures),
        first_failure=run.failures[0] if run.failures else "",
        client_cpu=(time.process_time() - cpu_before) / spent,
    )


def main() -> None:
    """Answer each line of stdin with one of stdout."""
    for line in sys.stdin:
        plan = json.loads(line)
        measured = uvloop.run(_measure(Target(**plan["target"]), Load(**plan["load"])))
        sys.stdout.write(json.dumps(asdict(measured)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
