"""P17: management is not reachable through the gateway in any encoding. The node behind it would answer 200 to anything."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.reliability.hostile_paths import corpus
from support.envoy_process import RunningEnvoy, backend, live
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration

# All that a node may ever be asked.
ALLOWED = re.compile(r"/predictions/digits/1-onnx-fp32-000000000001(\?.*)?")


@pytest.fixture(scope="module")
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy() as running:
        yield running


@pytest.fixture
def node(envoy: RunningEnvoy) -> Iterator[UdsServer]:
    with UdsServer(envoy.sockets / "a.sock") as server:
        envoy.gateway.apply(live(backend(1, server.socket)))
        yield server


class _Raw:
    """Requests with targets that no HTTP library would send, on one connection as long as it lasts."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)

    def status(self, method: str, target: str) -> int:
        """The answer's status. A connection that was closed by the answer before is opened again."""
        request = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
        answer = self._exchange(request)
        if not answer:
            self._socket.close()
            self._connect()
            answer = self._exchange(request)
        status = int(answer.split(b" ")[1])
        if method in ("HEAD", "CONNECT") or status == 400 or b"connection: close" in answer:
            self._socket.close()
            self._connect()
        return status

    def _exchange(self, request: bytes) -> bytes:
        try:
            self._socket.sendall(request)
            answer = self._socket.recv(65536)
            while answer and b"\r\n\r\n" not in answer:
                answer += self._socket.recv(65536)
        except ConnectionError:
            return b""
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        while length and not request.startswith(b"HEAD") and len(body) < int(length[1]):
            body += self._socket.recv(65536)
        return answer

    def close(self) -> None:
        self._socket.close()


def test_no_path_reaches_anything_but_predictions(envoy: RunningEnvoy, node: UdsServer) -> None:
    raw, statuses = _Raw(envoy.config.port), {}
    for method, target in corpus():
        num_before = len(node.requests)
        status = raw.status(method, target)
        statuses[status] = statuses.get(status, 0) + 1
        for request in node.requests[num_before:]:
            assert ALLOWED.fullmatch(request.path), f"{method} {target} reached {request.method} {request.path}"
            assert request.headers["x-modelway-protocol"] in {"v2-infer", "v2-ready", "v1-predict", "predictions"}
        assert status < 500, f"{method} {target} -> {status}"
    raw.close()
    assert sum(statuses.values()) > 5000
    assert statuses.get(200, 0) < 60, statuses  # "/predictions/digits?..." and metadata are real calls


def test_the_corpus_reaches_management_of_a_node_that_no_gateway_guards(envoy: RunningEnvoy, node: UdsServer) -> None:
    """The test above can fail: a route that passes paths on lets the same corpus through."""
    routes = envoy.config.routes_file
    careless = {"match": {"prefix": "/"}, "route": {"cluster": "release-1"}}
    text = routes.read_text()
    first = text.index('"routes": [') + len('"routes": [')
    (envoy.home / "careless").write_text(text[:first] + str(careless).replace("'", '"') + "," + text[first:])
    (envoy.home / "careless").rename(routes)
    envoy.gateway._admin.snapshot_past_all_workers(5)
    raw = _Raw(envoy.config.port)
    reached = [target for target in ("/models", "//models", "/./models", "/%6dodels") if raw.status("GET", target) == 200]
    raw.close()
    assert "/models" in reached
    assert any(not ALLOWED.fullmatch(request.path) for request in node.requests)


def test_only_the_intended_sockets_listen(envoy: RunningEnvoy) -> None:
    assert envoy.process is not None
    process = psutil.Process(envoy.process.pid)
    listening = {(c.laddr.ip, c.laddr.port) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", envoy.config.port)}
    unix = {c.laddr for c in process.net_connections("unix") if c.laddr}
    assert unix == {str(envoy.config.admin_socket)}
    assert envoy.config.admin_socket.stat().st_mode & 0o777 == 0o600
    assert envoy.config.directory.stat().st_mode & 0o777 == 0o700
