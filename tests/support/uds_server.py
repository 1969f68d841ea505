"""A real HTTP/1.1 server on a Unix socket that says what it was asked. Stands where a node stands, behind the real gateway.

with UdsServer(tmp / "a.sock", name="a") as node:
    node.status = 500        # from now on
    node.delay_s = 0.2
    node.requests            # every request that reached it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class SeenRequest:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class UdsServer:
    """Answers 200 with `{"server", "method", "path", "headers", "body_bytes"}` to anything, and remembers it."""

    def __init__(self, socket: Path, *, name: str = "node") -> None:
        self.socket = socket
        self.name = name
        self.status = 200
        self.delay_s = 0.0
        self.drops_predictions = False  # hang up on a POST, as a worker that dies over it does
        self.response_headers: dict[str, str] = {}
        self.requests: list[SeenRequest] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"uds-{name}", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop at once, as a killed node does: connections break, the socket file goes."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        self.socket.unlink(missing_ok=True)

    @property
    def predictions(self) -> list[SeenRequest]:
        """Of the requests that reached it, those that are no health check."""
        return [request for request in self.requests if request.method == "POST"]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._serve, str(self.socket), backlog=1024))
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                request = await _read_request(reader)
                answer = await self._answer(request)
                if self.drops_predictions and request.method == "POST":
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    async def _answer(self, request: SeenRequest) -> bytes:
        self.requests.append(request)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        seen = {"server": self.name, "method": request.method, "path": request.path, "headers": request.headers}
        body = json.dumps({**seen, "body_bytes": len(request.body)}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.response_headers}
        lines = [f"HTTP/1.1 {self.status} x", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + body


async def _read_request(reader: asyncio.StreamReader) -> SeenRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return SeenRequest(method, path, headers, body)
