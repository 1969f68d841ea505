"""The client that measures every server: it must see what a server does wrong, not only how fast it is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.http_client import Load, LoadClient, Measured, Target
from benchmarks.load_generator import dechunked
from benchmarks.mlp import LAYERS, expected_logits, rows
from benchmarks.workloads import save_samples

Answers = Callable[[np.ndarray], tuple[int, object]]
SERVERS: dict[str, Answers] = {
    "v2": lambda row: (200, {"outputs": [{"data": expected_logits(row, 1).ravel().tolist()}]}),
    "bare": lambda row: (200, expected_logits(row, 1)[0].tolist()),
    "chunked": lambda row: (200, expected_logits(row, 1)[0].tolist()),
    "slow": lambda row: (time.sleep(0.02), (200, expected_logits(row, 1)[0].tolist()))[1],
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
            if request.param == "chunked":
                self.send_header("transfer-encoding", "chunked")
                content = b"5\r\n" + content[:5] + f"\r\n{len(content) - 5:x}\r\n".encode() + content[5:] + b"\r\n0\r\n\r\n"
            else:
                self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:5])  # in two pieces: the client must wait for the whole answer
            self.wfile.flush()
            self.wfile.write(content[5:])

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "mlp.npz"
    save_samples(path, rows(8), expected_logits(rows(8), 1))
    return path


@pytest.fixture(scope="module")
def client() -> Iterator[LoadClient]:
    with LoadClient() as client:
        yield client


def ask(client: LoadClient, port: int, samples: Path, *, rate_per_s: float = 0.0) -> Measured:
    target = Target(server="server", encoding="v2-json", port=port, path="/", samples=str(samples))
    return client.measure(target, Load(connections=3, duration_s=0.4, warmup_s=0.05, rate_per_s=rate_per_s))


@pytest.mark.parametrize("rate_per_s", [0.0, 100.0], ids=["closed", "open"])
@pytest.mark.parametrize("port", ["v2", "bare", "chunked"], indirect=True)
def test_a_server_that_is_right_is_measured(client: LoadClient, port: int, samples: Path, rate_per_s: float):
    measured = ask(client, port, samples, rate_per_s=rate_per_s)
    assert (measured.failed, measured.first_failure) == (0, "")
    assert measured.requests_per_s > 0
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert 0 < measured.client_cpu < 2


@pytest.mark.parametrize("rate_per_s", [0.0, 100.0], ids=["closed", "open"])
@pytest.mark.parametrize(
    ("port", "failure"), [(name, name) for name in ("wrong numbers", "status 503", "connection lost")], indirect=["port"]
)
def test_a_server_that_is_wrong_is_told(client: LoadClient, port: int, failure: str, samples: Path, rate_per_s: float):
    measured = ask(client, port, samples, rate_per_s=rate_per_s)
    assert measured.failed > 0
    assert measured.first_failure.startswith(failure)


@pytest.mark.parametrize("port", ["status 503"], indirect=True)
def test_answers_that_are_no_answers_do_not_count_as_rate(client: LoadClient, port: int, samples: Path):
    assert ask(client, port, samples).requests_per_s == 0


def test_nobody_there_is_told(client: LoadClient, samples: Path):
    measured = ask(client, 1, samples)
    assert measured.first_failure.startswith("no connection")


@pytest.mark.parametrize("port", ["slow"], indirect=True)
def test_latency_counts_from_when_a_request_was_due(client: LoadClient, port: int, samples: Path):
    """At four times the arrivals that the server can take, requests wait in the client, and their clocks run."""
    closed, flooded = ask(client, port, samples), ask(client, port, samples, rate_per_s=600.0)
    assert flooded.failed == 0
    assert flooded.p50_ms > 5 * closed.p50_ms


def test_chunks_are_put_together():
    assert dechunked(b"4;x=1\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n") == b"Wikipedia"
