"""P18: malformed, hostile and random input gets the right 4xx with an error: no 5xx, no hang, no worker restart.

Hypothesis makes the requests, so a case that fails is shrunk to the smallest one that does. Every case is sent on a
kept-alive connection as bytes; in between, good requests must be answered right.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.reliability.abuse import abuses, body, tensor
from benchmarks.reliability.proof import Proof, Say, Subject
from benchmarks.reliability.raw_http import RawConnection, Reply, ask_once, request

DEADLINE_S = 25.0  # the time that the gateway leaves a client for a request, and some
_GOOD_EVERY = 50
_BATCH = 2_000  # Hypothesis' memory of cases grows with them

Case = tuple[str, bytes]  # kind, bytes with {key} for a key


# --- what is sent


def cases(model: str) -> st.SearchStrategy[Case]:
    """Requests for a model of `proof.Subject`, from nearly right to noise."""
    infer = f"/v2/models/{model}/infer"
    kinds: dict[str, st.SearchStrategy[bytes]] = {
        "tensor fields": _changed_tensors().map(lambda content: _post(infer, content)),
        "JSON of any shape": _any_json().map(lambda value: _post(infer, json.dumps(value).encode())),
        "broken JSON": st.builds(_broken, st.just(body()), st.integers(0, 200), st.binary(max_size=6)).map(lambda c: _post(infer, c)),
        "noise as a body": st.binary(max_size=400).map(lambda content: _post(infer, content)),
        "binary extension": _binary().map(lambda pair: _post(infer, pair[1], **{"inference-header-content-length": pair[0]})),
        "raw bytes": st.binary(max_size=64).map(lambda content: _post(infer, content, **{"content-type": "application/octet-stream"})),
        "content types": _content_types().map(lambda kind: _post(infer, body(), **kind)),
        "TensorFlow Serving": _any_json().map(
            lambda value: _post(f"/v1/models/{model}:predict", json.dumps({"instances": value}).encode())
        ),
        "TorchServe": _any_json().map(lambda value: _post(f"/predictions/{model}", json.dumps(value).encode())),
        "paths": _paths(model).map(lambda pair: request(pair[0], pair[1], {"x-api-key": "{key}"})),
        "header values": _header_values().map(lambda value: _post(infer, body(), **{"x-a": value, "x-modelway-channel": value})),
        "keys": st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60).map(
            lambda word: request("POST", infer, {"x-api-key": word}, body())
        ),
        "noise on the wire": st.binary(min_size=1, max_size=200).map(lambda noise: noise + b"\r\n\r\n"),
        "broken heads": st.builds(_broken, st.just(_post(infer, body())), st.integers(0, 120), st.binary(max_size=4)).map(
            lambda data: data + b"\r\n\r\n"
        ),
    }
    return st.one_of(*(strategy.map(lambda data, kind=kind: (kind, data)) for kind, strategy in kinds.items()))


def _post(path: str, content: bytes, **headers: str) -> bytes:
    return request("POST", path, {"x-api-key": "{key}", "content-type": "application/json", **headers}, content)


# Finite sums of four of them stay finite in float32, and none is above 1000: an output that overflows is no client's mistake.
_NUMBERS = st.one_of(st.integers(-1000, 1000), st.floats(-1e30, 1000.0, allow_nan=False), st.just(-1e37), st.just(1e39), st.just(2**70))
_LEAVES = st.one_of(_NUMBERS, st.none(), st.booleans(), st.text(max_size=20))


def _any_json() -> st.SearchStrategy[object]:
    names = st.sampled_from(["inputs", "name", "data", "shape", "datatype", "parameters", "outputs", "id", "instances", "x"])
    return st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=5), max_leaves=20)


def _changed_tensors() -> st.SearchStrategy[bytes]:
    dimension = st.one_of(st.integers(-2, 8), st.integers(-(2**70), 2**70), _LEAVES)
    fields = {
        "name": st.one_of(st.just("input"), _LEAVES),
        "datatype": st.one_of(st.sampled_from(["FP32", "FP64", "INT8", "BYTES", "BF16", "BOOL", "fp32", ""]), _LEAVES),
        "shape": st.one_of(st.just([1, 4]), st.lists(dimension, max_size=5), _any_json()),
        "data": st.one_of(st.lists(_NUMBERS, max_size=12), st.lists(st.lists(_NUMBERS, max_size=5), max_size=4), _any_json()),
        "parameters": st.one_of(st.just({}), st.fixed_dictionaries({"binary_data_size": _LEAVES}), _any_json()),
    }
    changed = st.fixed_dictionaries({}, optional=fields).map(lambda changes: tensor(**changes))
    more = st.fixed_dictionaries({}, optional={"id": _LEAVES, "parameters": _any_json(), "outputs": _any_json()})
    return st.builds(lambda tensors, rest: body(*tensors, **rest), st.lists(changed, min_size=1, max_size=3), more)


def _broken(data: bytes, position: int, patch: bytes) -> bytes:
    at = position % (len(data) + 1)
    return data[:at] + patch + data[at + len(patch) :] if patch else data[:at]


def _binary() -> st.SearchStrategy[tuple[str, bytes]]:
    length = st.one_of(st.integers(-5, 400).map(str), st.text("0123456789-+.xe ", max_size=12))
    size = st.one_of(st.integers(-3, 40), st.integers(0, 2**70))

    def made(sent: str, claimed: int, rest: bytes, exact: bool) -> tuple[str, bytes]:
        entry = {"name": "input", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": claimed}}
        text = json.dumps({"inputs": [entry]}).encode()
        return (str(len(text)) if exact else sent), text + rest

    return st.builds(made, length, size, st.binary(max_size=40), st.booleans())


def _content_types() -> st.SearchStrategy[dict[str, str]]:
    words = st.sampled_from(
        ["application/json", "application/octet-stream", "text/plain", "gzip", "br", "*/*", "image/png", ";;;", "a/b;q=x", ""]
    )
    return st.fixed_dictionaries({}, optional={"content-type": words, "content-encoding": words, "accept": words})


def _header_values() -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80)


def _paths(model: str) -> st.SearchStrategy[tuple[str, str]]:
    parts = [
        "v2",
        "v1",
        "models",
        model,
        "infer",
        "versions",
        "1",
        "predictions",
        "..",
        ".",
        "%2e%2e",
        "%2f",
        "%00",
        "%",
        "a" * 300,
        "?",
        ";",
        "\\",
    ]
    path = st.lists(st.sampled_from(parts), max_size=8).map(lambda found: "/" + "/".join(found))
    return st.tuples(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"]), path)


# --- what must be true


@dataclass
class _Tally:
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    num_good: int = 0


def problem_of(reply: Reply, *, head_only: bool = False) -> str:
    """What is wrong with an answer to input that may be anything; empty if nothing is."""
    if reply.seconds > DEADLINE_S:
        return f"took {reply.seconds:.1f} s"
    if reply.status == 0 or 200 <= reply.status < 300:  # by chance it was right; or no HTTP at all, and the connection is closed
        return ""
    if reply.status == 500 and "model output is not finite" in reply.error:
        return ""  # random bytes are numbers too, and this model has none for some: nothing was wrong with the request
    if not 400 <= reply.status < 500:
        return f"status {reply.status}: {reply.body[:200]!r}"
    if b"Traceback" in reply.body or b'File "' in reply.body:
        return f"a stack trace: {reply.body[:200]!r}"
    return "" if reply.error or head_only else f"status {reply.status} without an error: {reply.body[:200]!r}"


def run(subject: Subject, num_cases: int, say: Say = lambda _: None) -> Proof:
    """Send `num_cases` generated cases and the table of abuses."""
    tally, problems = _Tally(), list[str]()
    before = _processes(subject)
    connection = RawConnection(subject.port)

    def check(case: Case) -> None:
        kind, data = case
        head_only = data.startswith(b"HEAD ")
        reply = connection.ask(data.replace(b"{key}", subject.key.encode()), head_only=head_only)
        tally.kinds[kind] += 1
        tally.statuses[reply.status] += 1
        tally.slowest_s = max(tally.slowest_s, reply.seconds)
        problem = problem_of(reply, head_only=head_only)
        if reply.status == 0 or reply.status in (400, 408, 426) or kind in ("noise on the wire", "broken heads"):
            connection.close()  # what is left of the case must not become the beginning of the next
        assert not problem, problem
        if sum(tally.kinds.values()) % _GOOD_EVERY == 0:
            tally.num_good += 1
            good = ask_once(subject.port, _post(f"/v2/models/{subject.model}/infer", body()).replace(b"{key}", subject.key.encode()))
            assert good.status == 200, f"a good request was answered {good.status}: {good.body[:200]!r}"

    try:
        for start in range(0, num_cases, _BATCH):
            _generated(subject.model, check, min(_BATCH, num_cases - start))
            say(f"P18: {sum(tally.kinds.values())} cases")
    except AssertionError as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        problems.append(f"{error} {notes}"[:2000])
    finally:
        connection.close()
    problems += _table(subject)
    after = _processes(subject)
    if before != after:
        problems.append(f"processes of the nodes changed: {sorted(before - after)} went, {sorted(after - before)} came")
    figures = {
        "cases": f"{sum(tally.kinds.values())} generated in {len(tally.kinds)} kinds, and {len(abuses(subject.model))} of the table",
        "answers": ", ".join(f"{count} times {status or 'closed'}" for status, count in sorted(tally.statuses.items())),
        "of these, 500": "right requests by chance, whose output is not finite; such an answer has an error id",
        "slowest answer": f"{tally.slowest_s * 1000:.0f} ms",
        "good requests in between": f"{tally.num_good}, all answered 200",
        "worker restarts": str(len(before - after)),
    }
    return Proof(promise="P18", title="Hostile input", figures=figures, problems=tuple(problems))


def _generated(model: str, check: Callable[[Case], None], num_cases: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]

    @settings(max_examples=num_cases, deadline=None, database=None, suppress_health_check=checks)
    @given(cases(model))
    def send(case: Case) -> None:
        check(case)

    send()


def _table(subject: Subject) -> list[str]:
    problems = []
    for abuse in abuses(subject.model):
        reply = ask_once(subject.port, abuse.bytes_with(subject.key))
        if reply.status != abuse.status or abuse.says not in reply.error or not reply.error:
            problems.append(f"{abuse.name}: expected {abuse.status} with {abuse.says!r}, got {reply.status} {reply.body[:200]!r}")
    return problems


def _processes(subject: Subject) -> set[tuple[int, float]]:
    """(pid, start) of every process of the nodes: TorchServe and its workers."""
    found = set()
    for record in subject.settings.run_dir.glob("node-*.json"):
        front = psutil.Process(json.loads(record.read_text())["pid"])
        found |= {(process.pid, process.create_time()) for process in (front, *front.children(recursive=True))}
    return found
