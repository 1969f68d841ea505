"""HTTP over a Unix socket, one connection a call.

httpx does that too, and leaks the socket of each connect that fails; what is asked here fails often: processes that
start, die and come back.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from pathlib import Path


def call(
    path: Path, method: str, target: str, *, timeout_s: float, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """One request: HTTP status and body. Raises OSError (TimeoutError among them) and http.client.HTTPException."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request(method, target, body=body or None, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("modelway", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; leave nothing open if that fails."""
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connecting.settimeout(self.timeout)
            connecting.connect(str(self._path))
        except OSError:
            connecting.close()
            raise
        self.sock = connecting
