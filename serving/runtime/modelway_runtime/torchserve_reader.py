"""TorchServe's worker reads its socket once per field of a request, dozens of calls each; this reads it in large pieces.

`ts.protocol.otf_message_handler` looks its functions up at each call, so replacing them takes effect with the next message.
The stock reader never reads past the field that it wants: when the handler's `initialize` runs, in the middle of the first
connection, nothing of the next message has been taken from the socket, and none is lost.

TorchServe is frozen at 0.12.0. Any other version keeps its own reader.

The messages (same file of TorchServe, `_retrieve_load_msg` and `_retrieve_inference_msg`), integers big-endian, 32 bits:

    predict  "I" { id, { name, value } -1, { name, content type, value } -1 } -1        each field behind its length
"""

from __future__ import annotations

import importlib
import logging
import os
import struct
import sys
from typing import Any, Protocol

VERSION = "0.12.0"

_PIECE_BYTES = 256 << 10
_INTEGER = struct.Struct("!i")
_END = -1
_DECODE_VARIABLE = "TS_DECODE_INPUT_REQUEST"
_logger = logging.getLogger("modelway")


class Connection(Protocol):
    """What is needed of a connected socket."""

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the front of the buffer; the number of bytes, 0 at the end of the stream."""


class BufferedReader:
    """Reads one connection. Ends the process when the other side has gone, as the stock reader does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._piece = bytearray(_PIECE_BYTES)
        self._view = memoryview(self._piece)
        self._start = 0
        self._stop = 0

    def take(self, length: int) -> bytearray:
        """The next `length` bytes; none for a length below 1."""
        start = self._start
        stop = start + length
        if stop <= self._stop:
            if length < 1:
                return bytearray()
            self._start = stop
            return self._piece[start:stop]
        if length > _PIECE_BYTES:
            return self._take_large(length)
        self._fill(length)
        self._start = length
        return self._piece[:length]

    def integer(self) -> int:
        """The next four bytes as a number."""
        start = self._start
        if start + 4 > self._stop:
            self._fill(4)
            start = 0
        self._start = start + 4
        number: int = _INTEGER.unpack_from(self._piece, start)[0]
        return number

    def _fill(self, length: int) -> None:
        """Move what is left to the front, and read until there are `length` bytes."""
        left = self._stop - self._start
        self._view[:left] = self._view[self._start : self._stop]
        self._start, self._stop = 0, left
        while self._stop < length:
            self._stop += self._receive(self._view[self._stop :])

    def _take_large(self, length: int) -> bytearray:
        """More than a piece holds goes straight to where it is wanted."""
        taken = bytearray(length)
        into = memoryview(taken)
        filled = self._stop - self._start
        into[:filled] = self._view[self._start : self._stop]
        self._start = self._stop = 0
        while filled < length:
            filled += self._receive(into[filled:])
        return taken

    def _receive(self, into: memoryview) -> int:
        num_bytes = self._connection.recv_into(into)
        if num_bytes == 0:
            logging.info("Frontend disconnected.")
            sys.exit(0)
        return num_bytes


def read_predict_message(reader: BufferedReader) -> list[dict[str, Any]]:
    """The requests of a batch, as `_retrieve_inference_msg` returns them when it is not to decode their values."""
    take, integer = reader.take, reader.integer
    batch: list[dict[str, Any]] = []
    while (length := integer()) != _END:
        request: dict[str, Any] = {"requestId": take(length)}
        headers = []
        while (length := integer()) != _END:
            name = take(length)
            headers.append({"name": name, "value": take(integer())})
        parameters = []
        while (length := integer()) != _END:
            name = take(length)
            content_type = take(integer())
            value = take(integer())
            parameters.append({"name": name.decode(), "contentType": content_type.decode(), "value": value})
        request["headers"] = headers
        request["parameters"] = parameters
        batch.append(request)
    return batch


def install() -> bool:
    """Replace the reader of TorchServe's worker, if this process is one and its version is the one that this was made for.

    Idempotent. Returns whether the reader is in place.
    """
    if "ts" not in sys.modules:
        return False
    version = str(getattr(sys.modules["ts"], "__version__", "unknown"))
    if version != VERSION:
        _logger.warning("TorchServe is %s, not %s: its own reader of requests stays", version, VERSION)
        return False
    _replace_functions(importlib.import_module("ts.protocol.otf_message_handler"))
    return True


def _replace_functions(handler: Any) -> None:
    if getattr(handler, "modelway_reader", False):
        return
    readers: dict[Any, BufferedReader] = {}  # one in a worker's life: the process ends with its connection
    stock_predict_message = handler._retrieve_inference_msg

    def reader_of(connection: Any) -> BufferedReader:
        try:
            return readers[connection]
        except KeyError:
            return readers.setdefault(connection, BufferedReader(connection))

    def take(connection: Any, length: int) -> bytearray:
        return reader_of(connection).take(length)

    def predict_message(connection: Any) -> list[dict[str, Any]]:
        if os.environ.get(_DECODE_VARIABLE) in (None, "true"):
            batch: list[dict[str, Any]] = stock_predict_message(connection)  # decodes; its fields still come from `take`
            return batch
        return read_predict_message(reader_of(connection))

    # Every other function of the module reads through this one.
    handler._retrieve_buffer = take
    handler._retrieve_inference_msg = predict_message
    handler.modelway_reader = True
