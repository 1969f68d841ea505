"""Closed-loop HTTP load from threads, each on its own kept-alive connection, each answer remembered."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Answer:
    """One request: when it was started, what came back. `status` 0 means that it was sent and nothing came."""

    started: float
    status: int
    release: str
    error: str = ""


class HttpLoad:
    """Requests to one address until it is stopped. `refused` counts connects that nobody took: those sent nothing."""

    def __init__(self, port: int, path: str, *, num_threads: int = 4, pause_s: float = 0.002) -> None:
        self._port, self._path, self._pause_s = port, path, pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_threads)]
        self.answers: list[Answer] = []
        self.refused = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a request hangs"

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
        while not self._stop.wait(self._pause_s):
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError:
                    self.refused += 1
                    continue
            self.answers.append(self._ask(connection))
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> Answer:
        started = time.monotonic()
        try:
            connection.request("POST", self._path, body=b"{}", headers={"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return Answer(started, response.status, response.headers.get("x-modelway-release", ""))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer(started, 0, "", repr(error))
