"""The reader against TorchServe's own: the same bytes give the same messages, however they are cut."""

from __future__ import annotations

import gc
import importlib
import logging
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from serving.runtime.modelway_runtime import torchserve_reader
from serving.runtime.modelway_runtime.torchserve_reader import BufferedReader, install


def integer(number: int) -> bytes:
    return struct.pack("!i", number)


def field(content: bytes) -> bytes:
    return integer(len(content)) + content


END = integer(-1)


def load_message(gpu: int = -1, envelope: bytes = b"") -> bytes:
    fields = field(b"digits") + field("/tmp/models/ü".encode()) + integer(32) + field(b"modelway_handler.py")
    return b"L" + fields + integer(gpu) + field(envelope) + b"\x01"


def request(request_id: bytes, headers: dict[bytes, bytes], parameters: list[tuple[bytes, bytes, bytes]]) -> bytes:
    named = b"".join(field(name) + field(value) for name, value in headers.items())
    values = b"".join(field(name) + field(content_type) + field(value) for name, content_type, value in parameters)
    return field(request_id) + named + END + values + END


def predict_message(*requests: bytes) -> bytes:
    return b"I" + b"".join(requests) + END


JSON, BYTES = b"application/json", b"application/octet-stream"
HEADERS = {b"x-modelway-protocol": b"v2-infer", b"X-Name": "Zürich".encode(), b"empty": b""}
MESSAGES = {
    "load": load_message(),
    "load on a GPU with an envelope": load_message(gpu=3, envelope=b"json"),
    "no request": predict_message(),
    "one request": predict_message(request(b"4f1c", HEADERS, [(b"body", JSON, b"[[1,2,3,4]]")])),
    "no headers, no parameters": predict_message(request(b"1", {}, [])),
    "empty body": predict_message(request(b"1", HEADERS, [(b"body", JSON, b"")])),
    "no content type": predict_message(request(b"1", HEADERS, [(b"body", b"", b"\x00\xff")])),
    "several parameters": predict_message(request(b"1", {}, [(b"a", b"text/plain", b"x"), (b"b", JSON, b"{}"), (b"c", BYTES, b"\xff")])),
    "a batch": predict_message(*(request(str(i).encode(), HEADERS, [(b"body", BYTES, bytes([i]) * i)]) for i in range(9))),
}


class Pieces:
    """A connection whose other side sent these pieces; each read gets one of them at most."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if piece]

    def recv_into(self, buffer: Any) -> int:
        content = self.recv(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def recv(self, length: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces[0]
        self._pieces[:1] = [piece[length:]] if len(piece) > length else []
        return bytes(piece[:length])


@pytest.fixture
def stock() -> Iterator[ModuleType]:
    """TorchServe's own module, as new."""
    yield fresh_module()
    sys.modules.pop("ts.protocol.otf_message_handler", None)


def fresh_module() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import uses what is deprecated, and leaves a file open
        sys.modules.pop("ts.protocol.otf_message_handler", None)
        module = importlib.import_module("ts.protocol.otf_message_handler")
        gc.collect()
    return module


@pytest.fixture
def ours(stock: ModuleType) -> ModuleType:
    """Another copy of it, with our reader."""
    module = fresh_module()
    assert module is not stock
    assert install()
    assert module._retrieve_buffer is not stock._retrieve_buffer
    return module


def read_all(module: ModuleType, connection: Pieces, number: int) -> list[Any]:
    return [module.retrieve_msg(connection) for _ in range(number)]


@pytest.mark.parametrize("decode", [None, "true", "false"])
@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_is_cut_anywhere_reads_as_torchserve_reads_it(
    stock: ModuleType, ours: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, decode: str | None
) -> None:
    if decode is None:
        monkeypatch.delenv("TS_DECODE_INPUT_REQUEST", raising=False)
    else:
        monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", decode)
    # One behind it, so that what is read too early, or lost, is seen.
    content = MESSAGES[name] + MESSAGES["one request"]
    expected = read_all(stock, Pieces(content), 2)
    for cut in range(len(content) + 1):
        got = read_all(ours, Pieces(content[:cut], content[cut:]), 2)
        assert got == expected
        assert [_types(message) for message in got] == [_types(message) for message in expected]


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(each) for key, each in value.items()}
    return [_types(each) for each in value] if isinstance(value, (list, tuple)) else type(value)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_comes_byte_by_byte_reads_the_same(stock: ModuleType, ours: ModuleType, name: str) -> None:
    content = MESSAGES[name]
    assert read_all(ours, Pieces(*(bytes([byte]) for byte in content)), 1) == read_all(stock, Pieces(content), 1)


@pytest.mark.parametrize("num_bytes", [(256 << 10) - 60, 256 << 10, (256 << 10) + 1, 3_000_001])
def test_bodies_around_and_above_the_size_of_a_piece(
    stock: ModuleType, ours: ModuleType, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    body = bytes(range(251)) * (num_bytes // 251 + 1)
    message = predict_message(*(request(b"1", HEADERS, [(b"body", BYTES, body[:num_bytes])]) for _ in range(3)))
    assert read_all(ours, Pieces(message, MESSAGES["a batch"]), 2) == read_all(stock, Pieces(message, MESSAGES["a batch"]), 2)


def test_installed_between_two_messages_of_one_connection_nothing_is_lost(stock: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker: the load message is read by the stock reader, while the next one may already lie in the socket."""
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    here, there = socket.socketpair()
    with here, there:
        sender = threading.Thread(target=there.sendall, args=(MESSAGES["load"] + MESSAGES["a batch"] * 40,))
        sender.start()
        assert stock.retrieve_msg(here)[0] == b"L"
        assert install()
        expected = read_all(fresh_module(), Pieces(MESSAGES["a batch"]), 1)
        assert read_all(stock, here, 40) == expected * 40  # type: ignore[arg-type]
        sender.join()


def test_the_process_ends_with_its_connection(ours: ModuleType) -> None:
    for cut in (0, 1, 7):
        with pytest.raises(SystemExit) as ended:
            ours.retrieve_msg(Pieces(MESSAGES["one request"][:cut]))
        assert ended.value.code == 0
    with pytest.raises(ValueError, match="Invalid command"):
        ours.retrieve_msg(Pieces(b"?"))


def test_many_fields_are_one_read(ours: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    class Counted(Pieces):
        def recv_into(self, buffer: Any) -> int:
            reads.append(len(buffer))
            return super().recv_into(buffer)

    ours.retrieve_msg(Counted(MESSAGES["a batch"]))
    assert len(reads) == 1


def test_another_torchserve_keeps_its_own_reader(
    stock: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = stock._retrieve_buffer
    monkeypatch.setattr(sys.modules["ts"], "__version__", "0.13.0")
    with caplog.at_level(logging.WARNING, logger="modelway"):
        assert not install()
    assert "TorchServe is 0.13.0, not 0.12.0" in caplog.text
    assert stock._retrieve_buffer is own


def test_without_torchserve_there_is_nothing_to_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ts", raising=False)
    assert not install()


def test_it_is_installed_once(ours: ModuleType) -> None:
    replaced = ours._retrieve_buffer
    assert install()
    assert ours._retrieve_buffer is replaced


def test_a_length_below_one_reads_nothing() -> None:
    reader = BufferedReader(Pieces(b"ab"))
    assert (reader.take(0), reader.take(-5), reader.take(1), reader.take(-5), reader.take(1)) == (b"", b"", b"a", b"", b"b")
    assert torchserve_reader.VERSION == "0.12.0"
