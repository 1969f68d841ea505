"""A worker's own socket: what it answers, in which order, in which batches, and what it refuses."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.runtime.modelway_runtime.batcher import Limits
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.listener import LIMITS_VARIABLE, Listener, limits_from_environment
from serving.runtime.modelway_runtime.messages import ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec
from support.polling import wait_until

ENGINE_VERSION = "3-onnx-fp32-0123456789ab"
TARGET = f"/predictions/double/{ENGINE_VERSION}"
_DEADLINE_S = 10.0
BESIDE = Limits(inline_below_s=0.0)  # a closed gate holds up the model, not the event loop


class Doubles:
    """Doubles its input, in batches that it remembers; waits at a gate before each, and fails on a 1300."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(1_000_000)
        self.batches: list[list[float]] = []
        self.threads: set[str] = set()
        self.takes_s = 0.0

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        self.batches.append(inputs[0].ravel().tolist())
        self.threads.add(threading.current_thread().name)
        assert self.gate.acquire(timeout=_DEADLINE_S)
        time.sleep(self.takes_s)
        if 1300.0 in self.batches[-1]:
            raise ValueError(1300)
        return {"doubled": inputs[0] * 2}

    def close_gate(self) -> None:
        self.gate = threading.Semaphore(0)


@pytest.fixture
def model() -> Doubles:
    return Doubles()


@pytest.fixture
def limits() -> Limits:
    return BESIDE


@pytest.fixture
def listener(tmp_path: Path, model: Doubles, limits: Limits) -> Iterator[Listener]:
    info = ModelInfo("double", "3", (Spec("x", "FP32", (-1, 1)),), (Spec("doubled", "FP32", (-1, 1)),), max_rows=1024)
    running = Listener(Core(info, model), tmp_path / "double.0123456789ab.9000.sock", "double", ENGINE_VERSION, limits)
    running.start()
    yield running
    model.gate.release(1_000_000)
    running.close()


@pytest.fixture
def client(listener: Listener) -> Iterator[httpx.Client]:
    with httpx.Client(base_url="http://worker", transport=httpx.HTTPTransport(uds=str(listener.path)), timeout=_DEADLINE_S) as http:
        yield http


def ask(client: httpx.Client, value: Any, **headers: str) -> httpx.Response:
    return client.post(TARGET, content=json.dumps([[value]]), headers=headers)


def request(value: float, *, head: str = "") -> bytes:
    body = json.dumps([[value]])
    return f"POST {TARGET} HTTP/1.1\r\nhost: w\r\n{head}content-length: {len(body)}\r\n\r\n{body}".encode()


def connect(listener: Listener) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_DEADLINE_S)
    connection.connect(str(listener.path))
    return connection


def read_answers(connection: socket.socket, num: int) -> list[tuple[int, Any]]:
    """(status, JSON) of the next answers of a connection."""
    file, answers = connection.makefile("rb"), []
    for _ in range(num):
        status = int(file.readline().split()[1])
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(file.readline, b"\r\n"))
        answers.append((status, json.loads(file.read(int(headers["content-length"])))))
    return answers


def test_it_answers_as_the_core_does(client: httpx.Client) -> None:
    assert ask(client, 2).json() == [[4.0]]
    refused = ask(client, "two")
    assert (refused.status_code, set(refused.json())) == (400, {"error"})
    assert ask(client, 2, **{"x-modelway-protocol": "v1-predict"}).status_code == 400
    assert client.get(TARGET, headers={"x-modelway-protocol": "v2-ready"}).json() == {"name": "double", "version": "3", "ready": True}


def test_only_its_owner_may_connect(listener: Listener) -> None:
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
    assert [path.name for path in listener.path.parent.iterdir()] == [listener.path.name]


@pytest.mark.parametrize("path", ["/", "/predictions/double", TARGET + "0", TARGET.replace("/3-", "/4-"), "/metrics/", "/../health"])
def test_it_answers_for_no_other_archive(client: httpx.Client, path: str) -> None:
    response = client.post(path, content="[[1]]")
    assert (response.status_code, response.json()) == (404, {"error": "no such path in this worker"})


def test_health_and_metrics_answer_while_the_model_runs(client: httpx.Client, listener: Listener, model: Doubles) -> None:
    assert ask(client, 1).status_code == 200
    model.close_gate()
    with connect(listener) as busy:
        busy.sendall(request(5))
        wait_until(lambda: [5.0] in model.batches, what="the model runs")
        assert client.get("/health").json() == {"ready": True}
        text = client.get("/metrics").text
        model.gate.release()
        assert read_answers(busy, 1) == [(200, [[10.0]])]
    labels = f'model="double",engine_version="{ENGINE_VERSION}",slot="9000"'
    assert f'modelway_worker_answers_total{{{labels},status="200"}} 2' in text  # one of them the health check
    assert f'modelway_worker_batch_size_bucket{{{labels},le="1"}} 2' in text


def test_what_waits_runs_together_up_to_the_limit(listener: Listener, model: Doubles) -> None:
    model.close_gate()
    connections = [connect(listener) for _ in range(41)]
    connections[0].sendall(request(0))
    wait_until(lambda: model.batches == [[0.0]], what="the first one runs alone: nothing else was there")
    for number, connection in enumerate(connections[1:], start=1):
        connection.sendall(request(number))
        wait_until(lambda number=number: listener.batcher.num_waiting == number, what="it waits")
    model.gate.release(100)
    answers = [read_answers(connection, 1)[0] for connection in connections]
    assert answers == [(200, [[2.0 * number]]) for number in range(41)]
    assert [len(batch) for batch in model.batches] == [1, 32, 8]
    for connection in connections:
        connection.close()


def test_a_request_that_breaks_the_model_fails_alone(listener: Listener, model: Doubles) -> None:
    model.close_gate()
    connections = [connect(listener) for _ in range(4)]
    for number, (connection, value) in enumerate(zip(connections, (0, 12, 1300, 14), strict=True)):
        connection.sendall(request(value))
        wait_until(lambda number=number: listener.batcher.num_waiting + len(model.batches) == number + 1, what="it arrived")
    model.gate.release(100)
    assert [read_answers(connection, 1)[0][0] for connection in connections] == [200, 200, 500, 200]
    for connection in connections:
        connection.close()


def test_answers_of_a_connection_keep_the_order_of_its_requests(listener: Listener, model: Doubles) -> None:
    with connect(listener) as connection:
        bad = request(0).replace(b"[[0]]", b"[[x]]")
        connection.sendall(b"".join([request(1), bad, request(2), b"GET /health HTTP/1.1\r\nhost: w\r\n\r\n", request(3)]))
        assert [status for status, _ in read_answers(connection, 5)] == [200, 400, 200, 200, 200]
        connection.sendall(b"".join(request(number) for number in range(300)))  # more than may be under way at once
        assert read_answers(connection, 300) == [(200, [[2.0 * number]]) for number in range(300)]


def test_requests_in_pieces_of_any_size(listener: Listener) -> None:
    whole = request(7) + request(8)
    with connect(listener) as connection:
        for number in range(len(whole)):
            connection.sendall(whole[number : number + 1])
        assert read_answers(connection, 2) == [(200, [[14.0]]), (200, [[16.0]])]


@pytest.mark.parametrize(("limits", "thread"), [(Limits(inline_below_s=5.0), "listener"), (Limits(inline_below_s=0.0), "model_0")])
def test_batches_known_to_be_short_run_on_the_loop(client: httpx.Client, model: Doubles, thread: str) -> None:
    assert ask(client, 1).status_code == 200
    assert model.threads == {"model_0"}  # nothing is known yet
    model.threads.clear()
    assert ask(client, 1).status_code == 200
    assert model.threads == {thread}


@pytest.mark.parametrize("limits", [replace(BESIDE, queue_size=3), replace(BESIDE, queue_bytes=3 * len("[[1]]"))])
def test_a_full_queue_is_429_and_recovers(listener: Listener, model: Doubles) -> None:
    model.close_gate()
    with connect(listener) as connection, connect(listener) as other:
        connection.sendall(request(1))
        wait_until(lambda: len(model.batches) == 1, what="the model runs")
        connection.sendall(request(2) * 3)
        wait_until(lambda: listener.batcher.num_waiting == 3, what="a full queue")
        other.sendall(request(3))
        head = other.recv(4096).decode()
        assert head.startswith("HTTP/1.1 429 Too Many Requests\r\n")
        assert "retry-after: 1\r\n" in head
        assert '{"error":"the model\'s queue is full (3 requests wait); ask again later"}' in head
        other.sendall(f"GET {TARGET} HTTP/1.1\r\nhost: w\r\nx-modelway-protocol: v2-ready\r\n\r\n".encode())
        assert read_answers(other, 1)[0][0] == 200, "a worker that is busy is ready"
        model.gate.release(100)
        assert [status for status, _ in read_answers(connection, 4)] == [200] * 4
        other.sendall(request(3))
        assert read_answers(other, 1) == [(200, [[6.0]])]


@pytest.mark.parametrize("limits", [replace(BESIDE, batch_size=1, queue_s=0.1)])
def test_a_slow_model_has_a_short_queue_and_one_slow_batch_is_no_slow_model(
    listener: Listener, client: httpx.Client, model: Doubles
) -> None:
    """Batches of 60 ms and a wait of 100 ms at most: one may wait, and the next, but no third."""
    for model.takes_s in (0.06, 0.06, 0.0, 0.06):
        assert ask(client, 1).status_code == 200
    assert _statuses_of_five_at_once(listener, model) == [200] * 5
    model.takes_s = 0.06
    for _ in range(4):
        assert ask(client, 1).status_code == 200
    assert _statuses_of_five_at_once(listener, model) == [200, 200, 200, 429, 429]
    model.takes_s = 0.0
    assert ask(client, 1).status_code == 200


def _statuses_of_five_at_once(listener: Listener, model: Doubles) -> list[int]:
    model.close_gate()
    with connect(listener) as connection:
        num_batches = len(model.batches)
        connection.sendall(request(1))
        wait_until(lambda: len(model.batches) > num_batches, what="the model runs")
        connection.sendall(request(1) * 4)
        wait_until(lambda: listener.batcher.num_waiting >= 2, what="a queue")
        model.gate.release(1_000_000)
        return [status for status, _ in read_answers(connection, 5)]


def test_a_request_that_waited_past_its_deadline_is_504_and_never_runs(listener: Listener, model: Doubles) -> None:
    model.close_gate()
    with connect(listener) as connection, connect(listener) as late:
        connection.sendall(request(1))
        wait_until(lambda: len(model.batches) == 1, what="the model runs")
        late.sendall(request(2, head="x-envoy-expected-rq-timeout-ms: 1\r\n"))
        wait_until(lambda: listener.batcher.num_waiting == 1, what="it waits")
        past = time.monotonic() + 0.01
        wait_until(lambda: time.monotonic() > past, what="its deadline passes")
        model.gate.release(100)
        status, body = read_answers(late, 1)[0]
    assert status == 504
    assert "longer than its deadline" in body["error"]
    assert model.batches == [[1.0]]


def test_nobody_computes_for_a_client_that_left(listener: Listener, model: Doubles) -> None:
    model.close_gate()
    with connect(listener) as connection:
        connection.sendall(request(1))
        wait_until(lambda: len(model.batches) == 1, what="the model runs")
        with connect(listener) as leaving:
            leaving.sendall(request(2))
            wait_until(lambda: listener.batcher.num_waiting == 1, what="it waits")
        connection.sendall(request(3))
        wait_until(lambda: listener.batcher.num_waiting == 2, what="one more waits")
        model.gate.release(100)
        assert read_answers(connection, 2) == [(200, [[2.0]]), (200, [[6.0]])]
    assert model.batches == [[1.0], [3.0]]


_CHUNKED = f"POST {TARGET} HTTP/1.1\r\nhost: w\r\ntransfer-encoding: chunked\r\n\r\n5\r\n[[1]]\r\n0\r\n\r\n".encode()
_LARGE = f"POST {TARGET} HTTP/1.1\r\nhost: w\r\ncontent-length: 1000000\r\n\r\n".encode()


@pytest.mark.parametrize("limits", [Limits(body_bytes=1000)])
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00" * 10, 400, id="TLS"),
        pytest.param(_CHUNKED, 411, id="chunked"),
        pytest.param(_LARGE, 413, id="too large, before its body"),
        pytest.param(request(1, head="content-length: 3\r\n"), 400, id="two lengths"),
        pytest.param(request(1, head=f"x: {'y' * 70_000}\r\n"), 431, id="long header"),
        pytest.param(request(1, head="content-length: -1\r\n"), 400, id="negative length"),
    ],
)
def test_what_no_gateway_sends_is_refused_and_the_connection_ends(listener: Listener, sent: bytes, status: int) -> None:
    with connect(listener) as connection:
        connection.sendall(request(1) + sent)
        answers = read_answers(connection, 2)
        assert answers[0] == (200, [[2.0]])
        assert (answers[1][0], set(answers[1][1])) == (status, {"error"})
        assert connection.recv(1) == b""
    with connect(listener) as connection:
        connection.sendall(request(2))
        assert read_answers(connection, 1) == [(200, [[4.0]])]


def test_connection_close_is_honoured(listener: Listener) -> None:
    with connect(listener) as connection:
        connection.sendall(request(1, head="connection: close\r\n"))
        assert read_answers(connection, 1) == [(200, [[2.0]])]
        assert connection.recv(1) == b""


def test_large_bodies_and_answers(listener: Listener, client: httpx.Client) -> None:
    values = np.arange(1000, dtype=np.float32).reshape(-1, 1)
    for _ in range(3):
        response = client.post(TARGET, content=json.dumps((values * 1.5).tolist()))
        assert np.array_equal(np.array(response.json()), values * 3)


def test_limits_come_from_the_node_and_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMITS_VARIABLE, raising=False)
    assert limits_from_environment() == Limits()
    monkeypatch.setenv(LIMITS_VARIABLE, '{"batch_size": 8, "queue_size": 5, "of_a_later_version": 1}')
    assert limits_from_environment(batch_size=0) == Limits(batch_size=8, queue_size=5)
    assert limits_from_environment(batch_size=64) == Limits(batch_size=64, queue_size=5)


def test_a_model_that_hangs_ends_the_worker(tmp_path: Path) -> None:
    """In a process of its own, since that is what ends."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child
        hanging = Doubles()
        hanging.close_gate()
        info = ModelInfo("double", "3", (Spec("x", "FP32", (-1, 1)),), (Spec("doubled", "FP32", (-1, 1)),), max_rows=1024)
        Listener(Core(info, hanging), tmp_path / "w.sock", "double", ENGINE_VERSION, Limits(hang_s=0.2)).start()
        threading.Event().wait(_DEADLINE_S)
        os._exit(0)
    wait_until((tmp_path / "w.sock").exists, what="the child listens")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_DEADLINE_S)
        connection.connect(str(tmp_path / "w.sock"))
        connection.sendall(request(1))
        assert connection.recv(1) == b""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70
