"""HTTP/1.1 byte by byte, for requests that no client library would send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_HEAD_END = b"\r\n\r\n"
_MAX_ANSWER_BYTES = 8 << 20


@dataclass(frozen=True)
class Reply:
    """One answer. `status` 0 means that the server closed without a word; `error` is that of its JSON body, if it has one."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0

    @property
    def error(self) -> str:
        """The text under "error"; empty if the body is not `{"error": text}`."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        return document["error"] if isinstance(document, dict) and isinstance(document.get("error"), str) else ""


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"", *, host: str = "gateway") -> bytes:
    """A well-formed request around a body that need not be."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RawConnection:
    """One connection to 127.0.0.1. Opens itself anew when the server has closed it."""

    def __init__(self, port: int, *, timeout_s: float = 40.0) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._rest = b""

    def close(self) -> None:
        """Close it, if it is open."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._rest = b""

    def ask(self, data: bytes, *, head_only: bool = False) -> Reply:
        """Send bytes and read one answer. Raises TimeoutError if nothing whole comes in time."""
        started = time.monotonic()
        reused = self._socket is not None
        reply = self._try(data, head_only=head_only, started=started)
        if reply.status == 0 and reused:  # it may have been closed since the last answer
            reply = self._try(data, head_only=head_only, started=started)
        return reply

    def _try(self, data: bytes, *, head_only: bool, started: float) -> Reply:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=self._timeout_s)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise
        except OSError:  # answered and closed before everything was sent: the answer may still be there
            pass
        reply = self._read(head_only=head_only, started=started)
        if reply.status == 0 or reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    def _read(self, *, head_only: bool, started: float) -> Reply:
        head, self._rest = self._until_head()
        if not head:
            return Reply(seconds=time.monotonic() - started)
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = b"" if head_only or status == 204 else self._body(headers)
        return Reply(status, headers, body, time.monotonic() - started)

    def _until_head(self) -> tuple[bytes, bytes]:
        data, self._rest = self._rest, b""
        while _HEAD_END not in data:
            chunk = self._receive()
            if not chunk:
                return b"", b""
            data += chunk
        head, _, rest = data.partition(_HEAD_END)
        return head, rest

    def _body(self, headers: Mapping[str, str]) -> bytes:
        length = int(headers.get("content-length", "-1"))
        data = self._rest
        while length < 0 or len(data) < length:
            chunk = self._receive()
            if not chunk or len(data) > _MAX_ANSWER_BYTES:
                break
            data += chunk
        self._rest = data[length:] if length >= 0 else b""
        return data[:length] if length >= 0 else data

    def _receive(self) -> bytes:
        assert self._socket is not None
        try:
            return self._socket.recv(65536)
        except ConnectionError:
            return b""


def ask_once(port: int, data: bytes, *, timeout_s: float = 40.0, head_only: bool = False) -> Reply:
    """One request on a connection of its own."""
    connection = RawConnection(port, timeout_s=timeout_s)
    try:
        return connection.ask(data, head_only=head_only)
    finally:
        connection.close()
