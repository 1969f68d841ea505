"""The worker's own way in: HTTP/1.1 on a Unix socket, past the engine's front.

    POST <path of the archive>    a request, as the engine's front would hand it over; PUT is the same
    GET  <path of the archive>    the same, for what has no body (v2-ready)
    GET  /health                  whether this worker answers
    GET  /metrics                 what it counts (Prometheus text)

Only the gateway and the controller reach the socket (mode 0600), so what is unusual is refused rather than supported:
no chunked bodies, no upgrades, no other path. Answers of one connection go out in the order of its requests.

Everything but the model itself (see `batcher`) and what takes long to decode (see `decoding`) runs on one event loop.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import Any

from .batcher import Batcher, Job, Limits
from .core import Core
from .decoding import Decoding, Raw
from .errors import RequestError
from .measures import CONTENT_TYPE, Measures
from .messages import Answer, Decoded, error_answer
from .protocols import PROTOCOL_HEADER

LIMITS_VARIABLE = "MODELWAY_WORKER_LIMITS"  # JSON: fields of `Limits`
HEALTH_PATH, METRICS_PATH = "/health", "/metrics"
EXPECTED_TIMEOUT_HEADER = "x-envoy-expected-rq-timeout-ms"  # how long the gateway waits, set by it on every request
_BACKLOG = 1024
_MAX_HEAD_BYTES = 64 << 10
_MAX_PIPELINED = 64
_NO_DEADLINE = float("inf")
_HANG_EXIT_CODE = 70
_START_TIMEOUT_S = 10.0
_SMALL_BYTES = 64 << 10
# What the core or this file reads; the rest of a request's headers is not even decoded.
_WANTED: Mapping[bytes, str] = {
    name.encode(): name
    for name in (
        "x-modelway-protocol",
        "inference-header-content-length",
        "content-type",
        "content-encoding",
        "accept",
        "x-request-id",
        EXPECTED_TIMEOUT_HEADER,
    )
}
_logger = logging.getLogger("modelway")


def limits_from_environment(**overrides: Any) -> Limits:
    """The limits that the node gives its workers, and over them what the archive says. Raises ValueError, TypeError."""
    known = {field.name for field in fields(Limits)}
    given = {**json.loads(os.environ.get(LIMITS_VARIABLE, "{}")), **{name: value for name, value in overrides.items() if value}}
    return Limits(**{name: value for name, value in given.items() if name in known})


class Listener:
    """Serves one loaded model on one Unix socket, on an event loop in a thread of its own.

    Args:
        path: The socket; replaced if it is there.
        model: Its name, for the metrics.
        engine_version: Part of the only path that is answered: a worker never answers for another archive.
    """

    def __init__(self, core: Core, path: Path, model: str, engine_version: str, limits: Limits) -> None:
        self.path = path
        self.target = f"/predictions/{model}/{engine_version}".encode()
        self.limits = limits
        self.measures = Measures()
        self._labels = {"model": model, "engine_version": engine_version, "slot": path.stem.rpartition(".")[2]}
        self._core = core
        self.new_parser: Any = importlib.import_module("httptools").HttpRequestParser
        self._loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
        self.batcher = Batcher(core, limits, self._loop, self.measures, self._hangs)
        self.decoding = Decoding(self.decode, limits, self._loop, self._hangs)
        self._thread = threading.Thread(target=self._loop.run_forever, name="listener", daemon=True)
        self._server: Any = None

    def start(self) -> None:
        """Listen. When this returns, requests are answered. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        bound = self.path.with_suffix(".new")
        bound.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(bound))
        bound.chmod(0o600)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        # From now on these objects stay: the collector need not look at them in the middle of a request.
        gc.freeze()
        self._thread.start()
        listen = self._loop.create_unix_server(lambda: _Connection(self), sock=listening, backlog=_BACKLOG)
        self._server = asyncio.run_coroutine_threadsafe(listen, self._loop).result(_START_TIMEOUT_S)
        bound.replace(self.path)  # now, so that nobody connects to a socket that is not served yet

    def close(self) -> None:
        """Stop at once; the socket's file goes first."""
        self.path.unlink(missing_ok=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.close()

    def decode(self, headers: Mapping[str, str], body: bytes) -> Decoded | Answer:
        """See `Core.decode`; what it should never raise is a 500 and a line in the log."""
        try:
            return self._core.decode(headers, body)
        except Exception as error:  # one request must not take the listener along
            _logger.error("a request could not be decoded: %s", type(error).__name__)
            return error_answer(RequestError(500, f"the request could not be decoded ({type(error).__name__})"))

    def takes_long(self, headers: Mapping[str, str], body: bytes) -> bool:
        """See `Core.takes_long`."""
        return self._core.takes_long(headers, body)

    def own_answer(self, method: bytes, target: bytes) -> Answer:
        """The answer to anything but a request to the model."""
        if method == b"GET" and target == HEALTH_PATH.encode():
            return Answer(200, b'{"ready":true}')
        if method == b"GET" and target == METRICS_PATH.encode():
            num_waiting = self.batcher.num_waiting + self.decoding.num_waiting
            return Answer(200, self.measures.text(self._labels, num_waiting).encode(), CONTENT_TYPE)
        return error_answer(RequestError(404, "no such path in this worker"))

    def _hangs(self) -> None:
        # The same contract as the engine's own: a worker that is silent for so long is replaced.
        _logger.error("the model, or what decodes for it, has not answered for %g s; this worker ends", self.limits.hang_s)
        os._exit(_HANG_EXIT_CODE)


class _Exchange:
    """One request of a connection and, later, its answer."""

    __slots__ = ("answer", "connection", "keep_alive")

    def __init__(self, connection: _Connection, *, keep_alive: bool) -> None:
        self.connection = connection
        self.keep_alive = keep_alive
        self.answer: Answer | None = None

    def respond(self, answer: Answer) -> None:
        """Take the answer; it goes out once those before it have."""
        self.answer = answer
        self.connection.flush()


class _Connection(asyncio.Protocol):
    """Parses the requests of one connection and writes their answers in order."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = listener.new_parser(self)
        self._transport: Any = None
        self._exchanges: deque[_Exchange] = deque()
        self._jobs: list[Job | Raw] = []
        self._paused = False
        self._refused = False
        self.on_message_begin()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for what is still under way."""
        self._refused = True
        for job in self._jobs:
            job.cancelled = True
        self._exchanges.clear()

    def data_received(self, data: bytes) -> None:
        """Parse; complete requests are submitted from within."""
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except Exception as error:  # httptools raises one class per kind of malformed request, and passes on our own
            self._refuse(error if isinstance(error, RequestError) else getattr(error, "__context__", None))

    # --- callbacks of the parser

    def on_message_begin(self) -> None:
        """A new request."""
        self._target = b""
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._num_bytes = 0
        self._num_head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Part of the request line."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._num_head_bytes += len(name) + len(value)
        if self._num_head_bytes > _MAX_HEAD_BYTES:
            raise RequestError(431, "the request headers are too large")
        wanted = _WANTED.get(name) or _WANTED.get(name.lower())
        if wanted is not None:
            self._headers[wanted] = value.decode("latin-1")
        elif name.lower() == b"transfer-encoding":
            raise RequestError(411, "a body needs a content-length here")
        elif name.lower() == b"content-length" and int(value) > self._listener.limits.body_bytes:
            raise RequestError(413, f"the request body is larger than {self._listener.limits.body_bytes} bytes; send a smaller batch")

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._chunks.append(body)
        self._num_bytes += len(body)

    def on_message_complete(self) -> None:
        """Answer the request, now or when the model has."""
        exchange = _Exchange(self, keep_alive=self._parser.should_keep_alive())
        self._exchanges.append(exchange)
        method = self._parser.get_method()
        if self._target != self._listener.target:
            exchange.respond(self._listener.own_answer(method, self._target))
            return
        # Before it is decoded: what is refused must cost little, or an overload eats what the model needs.
        refusal = None if self._headers.get(PROTOCOL_HEADER, "").endswith("ready") else self._listener.batcher.refusal(self._num_bytes)
        if refusal is not None:
            exchange.respond(refusal)
            return
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        arrived = time.monotonic()
        deadline = arrived + _timeout_s(self._headers)
        if self._listener.takes_long(self._headers, body):
            raw = Raw(self._headers, body, arrived, deadline, lambda decoded: self._submit(exchange, decoded, len(body), arrived, deadline))
            self._jobs.append(raw)
            self._listener.decoding.submit(raw)
        else:
            self._submit(exchange, self._listener.decode(self._headers, body), self._num_bytes, arrived, deadline)
        if len(self._exchanges) >= _MAX_PIPELINED and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _submit(self, exchange: _Exchange, decoded: Decoded | Answer, num_bytes: int, arrived: float, deadline: float) -> None:
        if not isinstance(decoded, Decoded):
            exchange.respond(decoded)
            return
        job = Job(decoded, num_bytes, arrived, deadline, exchange.respond)
        self._jobs.append(job)
        self._listener.batcher.submit(job)

    # --- answering

    def flush(self) -> None:
        """Write the answers that are next in order."""
        while self._exchanges and self._exchanges[0].answer is not None:
            exchange = self._exchanges.popleft()
            assert exchange.answer is not None
            self._write(exchange.answer, keep_alive=exchange.keep_alive)
        if not self._exchanges:
            self._jobs.clear()
        if self._paused and len(self._exchanges) < _MAX_PIPELINED:
            self._paused = False
            self._transport.resume_reading()

    def _write(self, answer: Answer, *, keep_alive: bool) -> None:
        self._listener.measures.answered(answer.status)
        head = _head(answer, keep_alive=keep_alive)
        if len(answer.body) <= _SMALL_BYTES:
            self._transport.write(head + answer.body)
        else:
            self._transport.writelines([head, answer.body])
        if not keep_alive:
            self._transport.close()

    def _refuse(self, error: BaseException | None) -> None:
        """The connection cannot go on: answer what was asked before, then this, and close."""
        self._refused = True
        refusal = error if isinstance(error, RequestError) else RequestError(400, "not a valid HTTP/1.1 request")
        exchange = _Exchange(self, keep_alive=False)
        self._exchanges.append(exchange)
        exchange.respond(error_answer(refusal))


def _timeout_s(headers: Mapping[str, str]) -> float:
    milliseconds = headers.get(EXPECTED_TIMEOUT_HEADER, "")
    return int(milliseconds) / 1000 if milliseconds.isdecimal() and len(milliseconds) < 12 else _NO_DEADLINE


_REASONS: Mapping[int, str] = {status.value: status.phrase for status in HTTPStatus}


def _head(answer: Answer, *, keep_alive: bool) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    connection = "" if keep_alive else "connection: close\r\n"
    return (
        f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, '')}\r\ncontent-type: {answer.content_type}\r\n"
        f"content-length: {len(answer.body)}\r\n{extra}{connection}\r\n"
    ).encode("latin-1")
