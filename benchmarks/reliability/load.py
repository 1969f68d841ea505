"""Load from a client that stays cheap at a thousand requests a second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass

_GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it was due, on the clock of `time.monotonic`, how long it took from then, and its answer. Status 0: none came."""

    due_at: float
    latency_s: float
    status: int
    retry_after: bool = False
    has_error: bool = False

    @property
    def done_at(self) -> float:
        """When the answer was there."""
        return self.due_at + self.latency_s


class Clients:
    """Sends one request over and over to 127.0.0.1, on as many kept-alive connections as are in use at once."""

    def __init__(self, port: int, data: bytes) -> None:
        self._port, self._data = port, data
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def run_open(self, requests_per_s: float, duration_s: float) -> list[Sample]:
        """Arrivals that do not wait for answers: what became of each request, in the order in which they were due."""
        started = time.monotonic()
        tasks = []
        for number in range(round(requests_per_s * duration_s)):
            due = started + number / requests_per_s
            delay = due - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(self._ask(due)))
        samples = await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
        return list(samples)

    async def run_closed(self, num_clients: int, duration_s: float) -> list[Sample]:
        """The same with clients that each wait for an answer before they ask again."""
        until = time.monotonic() + duration_s

        async def client() -> list[Sample]:
            samples = []
            while time.monotonic() < until:
                samples.append(await self._ask(time.monotonic()))
            return samples

        found = await asyncio.gather(*(client() for _ in range(num_clients)))
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
        return [sample for samples in found for sample in samples]

    async def _ask(self, due: float) -> Sample:
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(self._data)
                head = await reader.readuntil(b"\r\n\r\n")
                lowered = head.lower()
                at = lowered.find(b"\r\ncontent-length:")
                length = int(lowered[at + 17 : lowered.index(b"\r\n", at + 2)]) if at >= 0 else 0
                content = await reader.readexactly(length)
        except (OSError, EOFError, TimeoutError, ValueError):
            with contextlib.suppress(UnboundLocalError):
                writer.close()
            return Sample(due, time.monotonic() - due, 0)
        if b"connection: close" in lowered:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return Sample(due, time.monotonic() - due, int(head[9:12]), b"\r\nretry-after:" in lowered, content.startswith(b'{"error"'))


def percentile_ms(samples: list[Sample], percent: float) -> float:
    """Of the latencies of the answers with 200, in milliseconds; infinite if there are none."""
    latencies = sorted(sample.latency_s for sample in samples if sample.status == 200)
    return latencies[min(len(latencies) - 1, int(len(latencies) * percent / 100))] * 1000 if latencies else float("inf")
