"""Bodies that take long to decode: nobody else waits for them, and what waits for them is bounded."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.runtime.modelway_runtime.batcher import Limits
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import RequestError
from serving.runtime.modelway_runtime.listener import Listener
from serving.runtime.modelway_runtime.messages import ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec
from support.polling import wait_until

TARGET = "/predictions/double/3-onnx-fp32-0123456789ab"
_DEADLINE_S = 10.0


class Doubles:
    def __init__(self) -> None:
        self.values: list[float] = []

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        self.values += inputs[0].ravel().tolist()
        return {"doubled": inputs[0] * 2}


class Gated:
    """Stands where images are decoded: the body is a number, and it waits at a gate first."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(1_000_000)
        self.started: list[bytes] = []
        self.threads: set[str] = set()

    def __call__(self, model: ModelInfo, body: memoryview) -> tuple[Array, ...]:
        self.started.append(bytes(body))
        self.threads.add(threading.current_thread().name)
        assert self.gate.acquire(timeout=_DEADLINE_S)
        if bytes(body) == b"bad":
            raise RequestError(400, "no image")
        if bytes(body) == b"broken":
            raise ValueError(body)
        return (np.array([[float(bytes(body))]], np.float32),)


@pytest.fixture
def model() -> Doubles:
    return Doubles()


@pytest.fixture
def images() -> Gated:
    return Gated()


@pytest.fixture
def limits() -> Limits:
    return Limits()


def listener_of(path: Path, model: Doubles, images: Gated, limits: Limits) -> Listener:
    specs = (Spec("x", "FP32", (-1, 1)),), (Spec("doubled", "FP32", (-1, 1)),)
    info = ModelInfo("double", "3", *specs, max_rows=1024, transforms={"image/png": images, "image/jpeg": images})
    return Listener(Core(info, model), path, "double", "3-onnx-fp32-0123456789ab", limits)


@pytest.fixture
def listener(tmp_path: Path, model: Doubles, images: Gated, limits: Limits) -> Iterator[Listener]:
    running = listener_of(tmp_path / "w.sock", model, images, limits)
    running.start()
    yield running
    images.gate.release(1_000_000)
    running.close()


def request(body: str, *, head: str = "", image: bool = True, method: str = "POST") -> bytes:
    head += "content-type: image/png\r\n" if image else ""
    return f"{method} {TARGET} HTTP/1.1\r\nhost: w\r\n{head}content-length: {len(body)}\r\n\r\n{body}".encode()


def connect(listener: Listener) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_DEADLINE_S)
    connection.connect(str(listener.path))
    return connection


def read_answers(connection: socket.socket, num: int) -> list[tuple[int, Any]]:
    file, answers = connection.makefile("rb"), []
    for _ in range(num):
        status = int(file.readline().split()[1])
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(file.readline, b"\r\n"))
        answers.append((status, json.loads(file.read(int(headers["content-length"])))))
    return answers


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_others_are_answered_while_an_image_is_decoded(listener: Listener, images: Gated, method: str) -> None:
    images.gate = threading.Semaphore(0)
    with connect(listener) as slow, connect(listener) as quick:
        slow.sendall(request("5", method=method))
        wait_until(lambda: images.started == [b"5"], what="it is being decoded")
        quick.sendall(request("[[1]]", image=False, method=method))
        assert read_answers(quick, 1) == [(200, [[2.0]])]
        images.gate.release()
        assert read_answers(slow, 1) == [(200, [[10.0]])]
    assert images.threads == {"decoding_0"}


def test_answers_of_a_connection_keep_the_order_of_its_requests(listener: Listener, images: Gated) -> None:
    images.gate = threading.Semaphore(0)
    with connect(listener) as connection:
        sent = [request("1"), request("[[2]]", image=False), request("bad"), request("3"), request("broken"), request("[[4]]", image=False)]
        connection.sendall(b"".join(sent))
        wait_until(lambda: bool(images.started), what="the first is being decoded")
        images.gate.release(1_000_000)
        answers = read_answers(connection, 6)
        assert [status for status, _ in answers] == [200, 200, 400, 200, 500, 200]
        assert [answers[index][1] for index in (0, 1, 3, 5)] == [[[2.0]], [[4.0]], [[6.0]], [[8.0]]]
        connection.sendall(b"".join(request(str(number)) for number in range(200)))  # more than may be under way at once
        assert read_answers(connection, 200) == [(200, [[2.0 * number]]) for number in range(200)]


def test_nothing_is_decoded_for_a_client_that_left(listener: Listener, images: Gated, model: Doubles) -> None:
    images.gate = threading.Semaphore(0)
    with connect(listener) as staying:
        with connect(listener) as leaving:
            leaving.sendall(request("1") + request("2"))
            wait_until(lambda: listener.decoding.num_waiting == 1, what="one is decoded, one waits")
        staying.sendall(request("3"))
        wait_until(lambda: listener.decoding.num_waiting == 2, what="another waits")
        images.gate.release(1_000_000)
        assert read_answers(staying, 1) == [(200, [[6.0]])]
    assert images.started == [b"1", b"3"]
    assert model.values == [3.0]


@pytest.mark.parametrize("limits", [Limits(queue_size=2), Limits(queue_bytes=2)])
def test_what_there_is_no_place_for_is_429(listener: Listener, images: Gated) -> None:
    images.gate = threading.Semaphore(0)
    with connect(listener) as connection, connect(listener) as other:
        connection.sendall(request("1") * 3)
        wait_until(lambda: listener.decoding.num_waiting == 2, what="a full queue")
        other.sendall(request("2"))
        status, body = read_answers(other, 1)[0]
        assert (status, "2 requests wait" in body["error"]) == (429, True)
        images.gate.release(1_000_000)
        assert [status for status, _ in read_answers(connection, 3)] == [200] * 3
        other.sendall(request("2"))
        assert read_answers(other, 1) == [(200, [[4.0]])]


@pytest.mark.parametrize("limits", [replace(Limits(), queue_s=0.0)])
def test_who_would_wait_too_long_is_429(listener: Listener, images: Gated) -> None:
    with connect(listener) as connection, connect(listener) as other:
        for _ in range(4):
            connection.sendall(request("1"))
            assert read_answers(connection, 1) == [(200, [[2.0]])]  # now it is known how long one takes
        images.gate = threading.Semaphore(0)
        connection.sendall(request("1") * 2)
        wait_until(lambda: listener.decoding.num_waiting == 1, what="one waits")
        other.sendall(request("2"))
        assert read_answers(other, 1)[0][0] == 429


def test_past_its_deadline_nothing_is_decoded(listener: Listener, images: Gated) -> None:
    images.gate = threading.Semaphore(0)
    with connect(listener) as connection, connect(listener) as late:
        connection.sendall(request("1"))
        wait_until(lambda: images.started == [b"1"], what="the first is being decoded")
        late.sendall(request("2", head="x-envoy-expected-rq-timeout-ms: 1\r\n"))
        wait_until(lambda: listener.decoding.num_waiting == 1, what="it waits")
        past = time.monotonic() + 0.01
        wait_until(lambda: time.monotonic() > past, what="its deadline passes")
        images.gate.release(1_000_000)
        assert read_answers(late, 1)[0][0] == 504
    assert images.started == [b"1"]


def test_what_hangs_while_it_decodes_ends_the_worker(tmp_path: Path) -> None:
    """In a process of its own, since that is what ends."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child
        hanging = Gated()
        hanging.gate = threading.Semaphore(0)
        listener_of(tmp_path / "w.sock", Doubles(), hanging, Limits(hang_s=0.2)).start()
        threading.Event().wait(_DEADLINE_S)
        os._exit(0)
    wait_until((tmp_path / "w.sock").exists, what="the child listens")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_DEADLINE_S)
        connection.connect(str(tmp_path / "w.sock"))
        connection.sendall(request("1"))
        assert connection.recv(1) == b""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70
