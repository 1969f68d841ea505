"""The client that measures every server: it must see what a server does wrong, not only how fast it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from benchmarks.http_client import Cell, Target, measure
from benchmarks.mlp import LAYERS, expected_logits

Answers = Callable[[np.ndarray], tuple[int, object]]
SERVERS: dict[str, Answers] = {
    "v2": lambda row: (200, {"outputs": [{"data": expected_logits(row, 1).ravel().tolist()}]}),
    "bare": lambda row: (200, expected_logits(row, 1)[0].tolist()),
    "wrong numbers": lambda row: (200, expected_logits(row, 2)[0].tolist()),
    "status 503": lambda row: (503, {"error": "no worker"}),
    "connection lost": lambda row: (0, None),
}


@pytest.fixture
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A server of the kind that the test names."""
    answer = SERVERS[request.param]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            tensor = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"][0]
            assert tensor["shape"] == [1, LAYERS[0]]
            status, body = answer(np.float32(tensor["data"]).reshape(tensor["shape"]))
            if not status:
                self.close_connection = True
                return
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:5])  # in two pieces: the client must wait for the whole answer
            self.wfile.flush()
            self.wfile.write(content[5:])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int) -> Cell:
    target = Target(name="server", port=port, path="/")
    (cell,) = measure([target], [Cell(target="server", connections=3)], duration_s=0.3, warmup_s=0.05)
    return cell


@pytest.mark.parametrize("port", ["v2", "bare"], indirect=True)
def test_a_server_that_is_right_is_measured(port: int):
    cell = ask(port)
    assert (cell.failed, cell.first_failure) == (0, "")
    assert cell.requests_per_s > 0
    assert 0 < cell.p50_ms <= cell.p99_ms


@pytest.mark.parametrize(
    ("port", "failure"), [(name, name) for name in ("wrong numbers", "status 503", "connection lost")], indirect=["port"]
)
def test_a_server_that_is_wrong_is_told(port: int, failure: str):
    cell = ask(port)
    assert cell.failed > 0
    assert cell.first_failure.startswith(failure)
