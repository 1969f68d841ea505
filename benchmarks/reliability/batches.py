"""P19: a bad request never fails those that run in a batch with it, and answers never cross."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.reliability.abuse import body, tensor
from benchmarks.reliability.proof import Proof, Subject
from benchmarks.reliability.raw_http import RawConnection, Reply, request

BATCH = 8
_TOLERANCE = 1e-3
# What the poisoned one of a batch is, and what it is answered.
POISONS: dict[str, tuple[bytes, int]] = {
    "an output that is not finite": (body(tensor(data=[2000.0, 0, 0, 0])), 500),
    "no JSON": (b"{", 400),
    "a wrong shape": (body(tensor(shape=[1, 5], data=[0.0] * 5)), 400),
    "NaN in raw bytes": (np.full(4, np.nan, np.float32).tobytes(), 400),
}


def run(subject: Subject, expected: np.ndarray, rows: np.ndarray, num_rounds: int, *, seed: int = 0) -> Proof:
    """Eight requests at once, `num_rounds` times, one of them poisoned, in changing order.

    Args:
        rows: Inputs [R, 4] whose answers differ from each other by far more than the tolerance.
        expected: Their logits [R, 3].
    """
    shuffle, problems, statuses = random.Random(seed), list[str](), dict[int, int]()
    connections = [RawConnection(subject.port) for _ in range(BATCH)]
    start = threading.Barrier(BATCH)
    headers = {"x-api-key": subject.key, "content-type": "application/json"}
    path = f"/v2/models/{subject.model}/infer"

    def ask(slot: int, content: bytes, kind: str) -> Reply:
        data = request("POST", path, {**headers, "content-type": kind}, content)
        start.wait(10)
        return connections[slot].ask(data)

    with ThreadPoolExecutor(BATCH) as threads:
        for number in range(num_rounds):
            name, (poison, poison_status) = shuffle.choice(list(POISONS.items()))
            poisoned, items = shuffle.randrange(BATCH), shuffle.sample(range(len(rows)), BATCH)
            kind = "application/octet-stream" if "raw" in name else "application/json"
            futures = [
                threads.submit(ask, slot, poison, kind)
                if slot == poisoned
                else threads.submit(ask, slot, body(tensor(data=rows[item].tolist()), id=str(item)), "application/json")
                for slot, item in enumerate(items)
            ]
            for slot, (item, future) in enumerate(zip(items, futures, strict=True)):
                reply = future.result(30)
                statuses[reply.status] = statuses.get(reply.status, 0) + 1
                problem = _poisoned(reply, poison_status) if slot == poisoned else _crossed(reply, item, expected[item])
                if problem:
                    problems.append(f"round {number}, {name}: {problem}")
    for connection in connections:
        connection.close()
    figures = {
        "batches": f"{num_rounds} of {BATCH} requests at once, one poisoned in each, {len(POISONS)} kinds of poison",
        "answers": ", ".join(f"{count} times {status}" for status, count in sorted(statuses.items())),
        "batch mates that failed or got another's answer": str(len(problems)),
    }
    return Proof(promise="P19", title="Batch mates", figures=figures, problems=tuple(problems[:10]))


def _poisoned(reply: Reply, status: int) -> str:
    return "" if reply.status == status and reply.error else f"the poisoned one was answered {reply.status} {reply.body[:100]!r}"


def _crossed(reply: Reply, item: int, expected: np.ndarray) -> str:
    if reply.status != 200:
        return f"a batch mate was answered {reply.status} {reply.body[:100]!r}"
    answer = json.loads(reply.body)
    got = np.asarray(answer["outputs"][0]["data"], np.float32)
    if answer.get("id") != str(item) or not np.allclose(got, expected, atol=_TOLERANCE):
        return f"request {item} got the answer of {answer.get('id')}: {got.tolist()} instead of {expected.tolist()}"
    return ""
