"""P21: clients that send half a request and then wait cost the others next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import statistics
from collections.abc import Iterator

from benchmarks.reliability.abuse import body
from benchmarks.reliability.load import Clients, Sample, percentile_ms
from benchmarks.reliability.proof import Proof, Say, Subject
from benchmarks.reliability.raw_http import request

_RATE = 200.0
_MOST_COST = 0.2
# A p99 of a few milliseconds moves by as much from run to run: a difference below this is not seen.
_RESOLUTION_MS = 1.0


def run(subject: Subject, num_slow: int, duration_s: float, num_rounds: int, say: Say = lambda _: None) -> Proof:
    """Ask `_RATE` times a second for `duration_s` with and without the slow clients, in turn, `num_rounds` times."""
    data = request("POST", f"/v2/models/{subject.model}/infer", {"x-api-key": subject.key, "content-type": "application/json"}, body())
    clients = Clients(subject.port, data)
    asyncio.run(clients.run_open(_RATE, 2.0))
    alone, beside = list[list[Sample]](), list[list[Sample]]()
    for number in range(num_rounds):
        alone.append(asyncio.run(clients.run_open(_RATE, duration_s)))
        with _slow_clients(subject, data, num_slow):
            beside.append(asyncio.run(clients.run_open(_RATE, duration_s)))
        say(f"P21: round {number + 1}: p99 {percentile_ms(alone[-1], 99):.1f} ms alone, {percentile_ms(beside[-1], 99):.1f} ms beside")
    before, after = (statistics.median(percentile_ms(samples, 99) for samples in series) for series in (alone, beside))
    failed = sum(sample.status != 200 for samples in (*alone, *beside) for sample in samples)
    problems = []
    if after > before * (1 + _MOST_COST) + _RESOLUTION_MS:
        problems.append(f"p99 went from {before:.1f} to {after:.1f} ms")
    if failed:
        problems.append(f"{failed} requests of others failed")
    figures = {
        "slow clients": f"{num_slow}: a third each with half the headers, with the headers only, with half the body",
        "others": f"{_RATE:g} requests/s, open loop, {num_rounds} times {duration_s:g} s with and without, in turn; {failed} failed",
        "p99 of the others": f"{before:.2f} ms alone, {after:.2f} ms beside ({after / before - 1:+.0%}; medians of {num_rounds})",
    }
    return Proof(promise="P21", title="Slow clients", figures=figures, problems=tuple(problems))


@contextlib.contextmanager
def _slow_clients(subject: Subject, data: bytes, num_slow: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))
    head_end = data.index(b"\r\n\r\n") + 4
    parts = (data[: head_end - 10], data[:head_end], data[: (head_end + len(data)) // 2])
    with contextlib.ExitStack() as open_sockets:
        for number in range(num_slow):
            client = open_sockets.enter_context(socket.create_connection(("127.0.0.1", subject.port), timeout=10))
            client.sendall(parts[number % 3])
        yield
