"""The closed-loop client of all servers: raw HTTP/1.1 with keep-alive over TCP or a Unix socket, in a process of its own.

    python -m benchmarks.http_client < cells.json

Each connection sends its next request when the last one is answered. Every status is checked, and the numbers of every
20th answer. The plan comes on stdin, because it holds a key.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.mlp import Floats, expected_logits, is_right, payload, rows

_NUM_ROWS = 32
_CHECK_EVERY = 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_GRACE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go. `port` for TCP on the loopback address, else `socket`."""

    name: str
    path: str
    port: int = 0
    socket: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: a target at a number of connections, and what came of it (all zero before)."""

    target: str
    connections: int
    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    failed: int = 0
    first_failure: str = ""


def measure(targets: Sequence[Target], cells: Sequence[Cell], *, duration_s: float, warmup_s: float) -> list[Cell]:
    """Run the cells one after the other in a client process."""
    plan = {
        "targets": [asdict(target) for target in targets],
        "cells": [asdict(cell) for cell in cells],
        "duration_s": duration_s,
        "warmup_s": warmup_s,
    }
    argv, root = [sys.executable, "-m", "benchmarks.http_client"], Path(__file__).parent.parent
    timeout_s = 60 + len(cells) * (duration_s + warmup_s + _GRACE_S)
    done = subprocess.run(argv, input=json.dumps(plan), stdout=subprocess.PIPE, cwd=root, text=True, check=True, timeout=timeout_s)
    return [Cell(**cell) for cell in json.loads(done.stdout)]


class _Run:
    """One cell while it runs."""

    def __init__(self, requests: Sequence[bytes], expected: Floats, *, measured_from: float, until: float) -> None:
        self.requests, self.expected = requests, expected
        self.measured_from, self.until = measured_from, until
        self.latencies_s: list[float] = []
        self.num_answers = 0
        self.failures: list[str] = []

    def answered(self, item: int, sent_at: float, status: bytes, body: bytes) -> None:
        now = time.perf_counter()
        self.num_answers += 1
        if sent_at >= self.measured_from and now <= self.until:
            self.latencies_s.append(now - sent_at)
        if status != b"200":
            self.failures.append(f"status {status.decode()}: {body[:200].decode(errors='replace')}")
        elif self.num_answers % _CHECK_EVERY == 1 and not is_right(json.loads(body), self.expected[item]):
            self.failures.append(f"wrong numbers: {body[:200].decode(errors='replace')}")


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run, first_item: int, ended: asyncio.Future[None]) -> None:
        self._run, self._item, self._ended = run, first_item, ended
        self._buffer = bytearray()
        self._needed = 0
        self._sent_at = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._item = (self._item + 1) % len(self._run.requests)
        self._sent_at = time.perf_counter()
        self._transport.write(self._run.requests[self._item])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(self._buffer, 0, head)
            if length is None:
                self._fail(f"an answer without a length: {bytes(self._buffer[:head])!r}")
                return
            self._needed = head + 4 + int(length[1])
        if len(self._buffer) < self._needed:
            return
        start = self._buffer.find(b"\r\n\r\n") + 4
        self._run.answered(self._item, self._sent_at, bytes(self._buffer[9:12]), bytes(self._buffer[start : self._needed]))
        self._buffer.clear()
        self._needed = 0
        if time.perf_counter() < self._run.until:
            self._send()
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._fail(f"connection lost: {exc}")

    def _fail(self, what: str) -> None:
        self._run.failures.append(what)
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        self._transport.close()


def _requests(target: Target) -> list[bytes]:
    requests = []
    for row in rows(_NUM_ROWS):
        body = payload(row[None])
        headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **target.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        requests.append(f"POST {target.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return requests


async def _run_cell(cell: Cell, target: Target, requests: Sequence[bytes], *, duration_s: float, warmup_s: float) -> Cell:
    loop = asyncio.get_running_loop()
    expected = expected_logits(rows(_NUM_ROWS), target.version)
    measured_from = time.perf_counter() + warmup_s
    run = _Run(requests, expected, measured_from=measured_from, until=measured_from + duration_s)
    ended = []
    for index in range(cell.connections):
        end = loop.create_future()
        ended.append(end)

        def connection(index: int = index, end: asyncio.Future[None] = end) -> _Connection:
            return _Connection(run, index, end)

        if target.socket:
            await loop.create_unix_connection(connection, target.socket)
        else:
            await loop.create_connection(connection, "127.0.0.1", target.port)
    _, pending = await asyncio.wait(ended, timeout=warmup_s + duration_s + _GRACE_S)
    run.failures += [f"no answer {_GRACE_S:g} s after the end"] * len(pending)
    if not run.latencies_s:
        run.failures.append("no request was answered within the measurement")
    p50_s, p99_s = np.percentile(run.latencies_s or [float("nan")], [50, 99])
    return Cell(
        target=cell.target,
        connections=cell.connections,
        requests_per_s=len(run.latencies_s) / duration_s,
        p50_ms=float(p50_s) * 1000,
        p99_ms=float(p99_s) * 1000,
        failed=len(run.failures),
        first_failure=run.failures[0] if run.failures else "",
    )


async def _run_plan(plan: dict[str, Any]) -> list[Cell]:
    targets = {target["name"]: Target(**target) for target in plan["targets"]}
    requests = {name: _requests(target) for name, target in targets.items()}
    times = {"duration_s": plan["duration_s"], "warmup_s": plan["warmup_s"]}
    cells = [Cell(**cell) for cell in plan["cells"]]
    return [await _run_cell(cell, targets[cell.target], requests[cell.target], **times) for cell in cells]


if __name__ == "__main__":
    json.dump([asdict(cell) for cell in uvloop.run(_run_plan(json.load(sys.stdin)))], sys.stdout)
