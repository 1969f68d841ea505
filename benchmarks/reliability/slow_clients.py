"""P21: clients that send half a request and then wait cost the others next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from benchmarks.reliability.abuse import body
from benchmarks.reliability.load import Clients, Sample, percentile_ms
from benchmarks.reliability.proof import Proof, Say, Subject
from benchmarks.reliability.raw_http import request

_RATE = 200.0
_RAMP_S = 10.0
_MOST_COST = 0.2
# A p99 of a few milliseconds moves by as much from run to run: a difference below this is not seen.
_RESOLUTION_MS = 1.0


def run(subject: Subject, num_slow: int, duration_s: float, num_rounds: int, say: Say = lambda _: None) -> Proof:
    """Ask `_RATE` times a second for `duration_s` with and without the slow clients, in turn, `num_rounds` times."""
    data = request("POST", f"/v2/models/{subject.model}/infer", {"x-api-key": subject.key, "content-type": "application/json"}, body())
    clients = Clients(subject.port, data)
    asyncio.run(clients.run_open(_RATE, 2.0))
    given_up = 0
    alone, beside = list[list[Sample]](), list[list[Sample]]()
    for number in range(num_rounds):
        alone.append(asyncio.run(clients.run_open(_RATE, duration_s)))
        with _in_a_process(subject.port, data, num_slow) as attack:
            beside.append(asyncio.run(clients.run_open(_RATE, duration_s)))
        given_up += attack.num_given_up
        say(f"P21: round {number + 1}: p99 {percentile_ms(alone[-1], 99):.1f} ms alone, {percentile_ms(beside[-1], 99):.1f} ms beside")
    before, after = (statistics.median(percentile_ms(samples, 99) for samples in series) for series in (alone, beside))
    failed = sum(sample.status != 200 for samples in (*alone, *beside) for sample in samples)
    problems = []
    if after > before * (1 + _MOST_COST) + _RESOLUTION_MS:
        problems.append(f"p99 went from {before:.1f} to {after:.1f} ms")
    if failed:
        problems.append(f"{failed} requests of others failed")
    figures = {
        "slow clients": f"{num_slow}: a third each with half the headers, with the headers only, with half the body; "
        f"{given_up} were given up by the gateway and came again",
        "others": f"{_RATE:g} requests/s, open loop, {num_rounds} times {duration_s:g} s with and without, in turn; {failed} failed",
        "p99 of the others": f"{before:.2f} ms alone, {after:.2f} ms beside ({after / before - 1:+.0%}; medians of {num_rounds})",
    }
    return Proof(promise="P21", title="Slow clients", figures=figures, problems=tuple(problems))


@dataclass
class _Attack:
    """How often a slow client was given up by the gateway, once the attack has ended."""

    num_given_up: int = 0


@contextlib.contextmanager
def _in_a_process(port: int, data: bytes, num: int) -> Iterator[_Attack]:
    """The slow clients in a process of their own, so that they do not hold up the one that measures."""
    attack = _Attack()
    argv = [sys.executable, "-m", __name__, str(port), str(num), data.hex()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready", "the slow clients cannot connect"
        yield attack
        process.stdin.close()
        attack.num_given_up = int(process.stdout.read())


class _SlowClients:
    """Keeps so many connections open that each have sent a part of a request. One that the gateway gives up is opened anew.

    They come one after the other over `_RAMP_S`, as an attacker's would: a thousand timeouts in one instant would be
    another test.
    """

    def __init__(self, port: int, data: bytes, num: int) -> None:
        head_end = data.index(b"\r\n\r\n") + 4
        self._parts = (data[: head_end - 10], data[:head_end], data[: (head_end + len(data)) // 2])
        self._port, self._num = port, num
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._ramped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow clients", daemon=True)
        self.num_given_up = 0

    def __enter__(self) -> Self:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self._num + 500
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)), hard))
        self._thread.start()
        assert self._ramped.wait(_RAMP_S * 5), "the slow clients cannot connect"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        started, opened = time.monotonic(), 0
        while not self._stop.is_set():
            due = min(self._num, int((time.monotonic() - started) / _RAMP_S * self._num) + 1)
            while opened < due:
                self._open(opened)
                opened += 1
            if opened == self._num:
                self._ramped.set()
            for key, _ in self._selector.select(0.02):
                client, number = key.fileobj, key.data
                assert isinstance(client, socket.socket)
                self._selector.unregister(client)  # whatever has come, it is a 408 or the end
                client.close()
                self.num_given_up += 1
                self._open(number)

    def _open(self, number: int) -> None:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        client.sendall(self._parts[number % len(self._parts)])
        self._selector.register(client, selectors.EVENT_READ, number)


if __name__ == "__main__":
    with _SlowClients(int(sys.argv[1]), bytes.fromhex(sys.argv[3]), int(sys.argv[2])) as clients:
        print("ready", flush=True)
        sys.stdin.read()
    print(clients.num_given_up)
