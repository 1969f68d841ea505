"""An open-loop load generator: arrivals do not wait for answers, so a server that stalls is seen to stall.

Every answer is kept with the release and the version that gave it, so that the caller can check the answers
against what each version must say. (Closed loops hide stalls: "coordinated omission",
https://www.scylladb.com/2021/04/22/on-coordinated-omission/.)
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

_CONNECTIONS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One request and what became of it.

    Attributes:
        item: Index of the payload.
        sent_at: When it was sent, in seconds of `time.monotonic`.
        due_at: When it should have been sent; later than that only when this process is too slow.
        latency_s: From the moment it should have been sent to the last byte of the answer.
        status: HTTP status; 0 if the connection failed.
        version: `x-modelway-version` of the answer; empty if it has none.
        body: The answer, or the error's text.
    """

    item: int
    sent_at: float
    due_at: float
    latency_s: float
    status: int
    version: str
    body: Any

    @property
    def done_at(self) -> float:
        """When the answer was there, in seconds of `time.monotonic`."""
        return self.due_at + self.latency_s


@dataclass(kw_only=True)
class OpenLoopLoad:
    """A load in a thread of its own: `start`, `stop`, then `answers`. Also a context manager.

    Attributes:
        url: Where each payload is POSTed.
        payloads: JSON bodies, sent in turn.
        requests_per_s: Arrivals per second, evenly spaced.
        timeout_s: After that many seconds a request counts as failed.
        headers: Sent with each request, beside the content type.
        verify: What httpx verifies the server's certificate with.
        answers: What became of each request, in the order in which they ended.
    """

    url: str
    payloads: Sequence[bytes]
    requests_per_s: float = 200.0
    timeout_s: float = 10.0
    headers: Mapping[str, str] = field(default_factory=dict)
    verify: ssl.SSLContext | bool = True
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> OpenLoopLoad:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending and wait for every answer that is under way."""
        self._stop.set()
        self._thread.join()

    @property
    def failed(self) -> list[Answer]:
        """The answers that are not 200."""
        return [answer for answer in self.answers if answer.status != httpx.codes.OK]

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_CONNECTIONS)
        async with httpx.AsyncClient(timeout=self.timeout_s, limits=limits, headers=dict(self.headers), verify=self.verify) as client:
            started, sent, pending = time.monotonic(), 0, set[asyncio.Task[None]]()
            while not self._stop.is_set():
                due = started + sent / self.requests_per_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self._send(client, sent % len(self.payloads), due))
                pending.add(task)
                task.add_done_callback(pending.discard)
                sent += 1
            await asyncio.gather(*pending)

    async def _send(self, client: httpx.AsyncClient, item: int, due: float) -> None:
        sent_at = time.monotonic()
        try:
            response = await client.post(self.url, content=self.payloads[item], headers={"content-type": "application/json"})
            status, version, body = response.status_code, response.headers.get("x-modelway-version", ""), _body(response)
        except httpx.HTTPError as error:
            status, version, body = 0, "", f"{type(error).__name__}: {error}"
        latency_s = time.monotonic() - due
        self.answers.append(Answer(item=item, sent_at=sent_at, due_at=due, latency_s=latency_s, status=status, version=version, body=body))


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text[:500]
