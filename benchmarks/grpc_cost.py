"""What gRPC costs against REST with binary tensors, through the same gateway, workers and release, in one interleaved run.

    python -m benchmarks.grpc_cost [--rounds 7] [--seconds 2]

Both clients are the same closed loop over raw sockets with requests that are built before, because a client library would
cost more than the server: `tritonclient.grpc` needs about as much of a core for a request as the gateway does. One request
of one row of 1,000 float32 at a time on each connection; a third of the answers are held against the model's numbers. The
processor time of gateway and workers is the figure that a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

from benchmarks.encodings import Encoding, request
from benchmarks.mlp import ATOL, INPUT, MODEL, OUTPUT, expected_logits, rows
from benchmarks.platform_under_test import PlatformUnderTest
from modelway.child_record import read_children
from registry.errors import Unavailable
from serving.runtime.modelway_runtime import wire

_NUM_ROWS = 32
_CHECK_EVERY = 3
_CONNECTIONS = (1, 8, 32)

# HTTP/2 frames: https://www.rfc-editor.org/rfc/rfc9113#section-4.1
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    gateway_us: float  # processor time for one request
    workers_us: float


class _Run:
    """What the connections of one measurement share."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.inputs = rows(_NUM_ROWS)
        self.expected = expected_logits(self.inputs, 1)
        self.latencies_s: list[float] = []

    def answered(self, item: int, sent_at: float, body: bytes) -> None:
        """Count one answer. Its numbers are its last bytes, raw, in both protocols."""
        self.latencies_s.append(time.perf_counter() - sent_at)
        if len(self.latencies_s) % _CHECK_EVERY == 0:
            logits = np.frombuffer(body[-self.expected.shape[1] * 4 :], "<f4")
            if not np.allclose(logits, self.expected[item], atol=ATOL):
                raise Unavailable(f"a wrong answer ({body[:200]!r})")


class _Connection(asyncio.Protocol):
    """A closed loop on one connection."""

    def __init__(self, run: _Run, first: int, ended: asyncio.Future[None]) -> None:
        self.run, self.item, self.ended = run, first % _NUM_ROWS, ended
        self.buffer = bytearray()
        self.sent_at = 0.0

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport
        self.begin()
        self.next()

    def begin(self) -> None:
        """What comes before the first request."""

    def send(self) -> None:
        """Write the request of `self.item`."""
        raise NotImplementedError

    def next(self) -> None:
        """Send, or end."""
        if time.perf_counter() >= self.run.until:
            self.end(None)
            return
        self.item = (self.item + 1) % _NUM_ROWS
        self.sent_at = time.perf_counter()
        self.send()

    def done(self, body: bytes) -> None:
        """Take an answer and go on."""
        try:
            self.run.answered(self.item, self.sent_at, body)
        except Unavailable as error:
            self.end(error)
            return
        self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed the connection."""
        self.end(Unavailable(f"the connection was lost ({exc})"))

    def end(self, error: Exception | None) -> None:
        """Close, once."""
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
        self.transport.close()


class _Rest(_Connection):
    requests: tuple[bytes, ...] = ()

    @classmethod
    def prepare(cls) -> None:
        """Build the requests."""
        made = []
        for row in rows(_NUM_ROWS):
            headers, body = request(Encoding.V2_BINARY, row[None])
            lines = [f"POST /v2/models/{MODEL}/infer HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            made.append("\r\n".join([*lines, "", ""]).encode() + body)
        cls.requests = tuple(made)

    def send(self) -> None:
        self.transport.write(self.requests[self.item])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            if not head.startswith(b"HTTP/1.1 200"):
                self.end(Unavailable(f"an error ({bytes(self.buffer[:300])!r})"))
                return
            self.buffer.clear()
            self.done(bytes(body))


class _Http2(_Connection):
    requests: tuple[bytes, ...] = ()
    head = b""

    @classmethod
    def set_head(cls, path: str, headers: dict[str, str]) -> None:
        """The headers as HPACK literals that are not indexed (RFC 7541, section 6.2.2)."""
        literals = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", **headers}.items()
        cls.head = b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in literals)

    def begin(self) -> None:
        self.stream = -1
        self.body = b""
        settings = b"\0\x04" + (1 << 30).to_bytes(4, "big")  # initial window: the answers of a whole run fit
        window = _frame(_WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))
        self.transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings) + window)

    def send(self) -> None:
        self.stream += 2
        self.body = b""
        head = _frame(_HEADERS, _END_HEADERS, self.stream, self.head)
        self.transport.write(head + _frame(_DATA, _END_STREAM, self.stream, self.requests[self.item]))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 9 and len(self.buffer) >= (end := 9 + int.from_bytes(self.buffer[:3], "big")):
            kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big")
            payload = bytes(self.buffer[9:end])
            del self.buffer[:end]
            self._frame(kind, flags, stream, payload)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in (_RST_STREAM, _GOAWAY):
            self.end(Unavailable(f"the stream was refused (frame {kind}: {payload!r})"))
        elif kind == _DATA and stream == self.stream:
            self.body += payload
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM and stream == self.stream:
            # An error is trailers without a message.
            if self.body:
                self.done(self.body)
            else:
                self.end(Unavailable(f"an error ({payload[:300]!r})"))


class _RestOverHttp2(_Http2):
    @classmethod
    def prepare(cls) -> None:
        """Build the requests."""
        made = [request(Encoding.V2_BINARY, row[None]) for row in rows(_NUM_ROWS)]
        cls.requests = tuple(body for _, body in made)
        cls.set_head(f"/v2/models/{MODEL}/infer", {name.lower(): value for name, value in made[0][0].items()})


class _Grpc(_Http2):
    @classmethod
    def prepare(cls) -> None:
        """Build the messages."""
        made = []
        for row in rows(_NUM_ROWS):
            tensor = wire.field(1, INPUT) + wire.field(2, "FP32") + wire.integers(3, (1, len(row)))
            message = wire.field(1, MODEL) + wire.field(5, tensor) + wire.field(6, wire.field(1, OUTPUT)) + wire.field(7, row.tobytes())
            made.append(b"\0" + len(message).to_bytes(4, "big") + message)
        cls.requests = tuple(made)
        cls.set_head("/inference.GRPCInferenceService/ModelInfer", {"content-type": "application/grpc", "te": "trailers"})


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class _Clock:
    """Processor seconds of the gateway and of everything under the node."""

    def __init__(self, platform: PlatformUnderTest) -> None:
        pids = {child.record.name: child.record.pid for child in read_children(platform.settings.run_dir)}
        self._gateway = [psutil.Process(pids["gateway"])]
        self._workers = psutil.Process(pids["node-0"]).children(recursive=True)

    def read(self) -> tuple[float, float]:
        """(gateway, workers), since their starts."""
        times = [[process.cpu_times() for process in group] for group in (self._gateway, self._workers)]
        gateway, workers = (sum(time.user + time.system for time in group) for group in times)
        return gateway, workers


async def _measure(
    platform: PlatformUnderTest, kind: Callable[[_Run, int, asyncio.Future[None]], _Connection], connections: int, seconds: float
) -> Measured:
    loop = asyncio.get_running_loop()
    clock, port = _Clock(platform), platform.settings.gateway_port
    run = _Run(time.perf_counter() + seconds)
    ends = [loop.create_future() for _ in range(connections)]
    for index, end in enumerate(ends):
        await loop.create_connection(lambda index=index, end=end: kind(run, index, end), "127.0.0.1", port)  # type: ignore[misc]
    started, before = time.perf_counter(), clock.read()
    await asyncio.gather(*ends)
    took_s = time.perf_counter() - started
    gateway_us, workers_us = ((now - then) * 1e6 / len(run.latencies_s) for now, then in zip(clock.read(), before, strict=True))
    p50, p99 = np.percentile(run.latencies_s, [50, 99]) * 1000
    rate = len(run.latencies_s) / took_s
    return Measured(requests_per_s=rate, p50_ms=float(p50), p99_ms=float(p99), gateway_us=gateway_us, workers_us=workers_us)


def main() -> int:
    """Start the platform, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpc_cost", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    kinds: dict[str, type[_Rest | _RestOverHttp2 | _Grpc]] = {
        "REST, binary tensors": _Rest,
        "the same over HTTP/2": _RestOverHttp2,
        "gRPC, raw contents": _Grpc,
    }
    for kind in kinds.values():
        kind.prepare()
    with tempfile.TemporaryDirectory(prefix="mw-") as directory:
        platform = PlatformUnderTest(Path(directory) / "home")
        platform.command("up", "--detach")
        try:
            platform.register(1)
            platform.command("promote", f"{MODEL}/1")
            found: dict[tuple[str, int], list[Measured]] = {}
            for _ in range(options.rounds):
                for connections in _CONNECTIONS:
                    for name, kind in kinds.items():
                        measured = uvloop.run(_measure(platform, kind, connections, options.seconds))
                        found.setdefault((name, connections), []).append(measured)
        finally:
            platform.command("down")
    print("| connections | | requests/s | p50 ms | p99 ms | gateway, us of CPU a request | workers, us |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, connections), measurements in sorted(found.items(), key=lambda item: item[0][1]):
        rate, p50, p99, gateway, workers = (statistics.median(values) for values in zip(*map(astuple, measurements), strict=True))
        print(f"| {connections} | {name} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {gateway:.0f} | {workers:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
