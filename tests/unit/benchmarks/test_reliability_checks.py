"""What the proofs of reliability call a problem: each check is shown something that is wrong."""

from __future__ import annotations

import json
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings

from benchmarks.reliability import batches, exposure, hostile
from benchmarks.reliability.abuse import abuses
from benchmarks.reliability.hostile_paths import corpus
from benchmarks.reliability.proof import Subject
from benchmarks.reliability.raw_http import RawConnection, Reply, ask_once, request
from modelway.settings import Settings

ERROR = b'{"error": "x"}'


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(400, {}, ERROR), ""),
        (Reply(200, {}, b"{}"), ""),
        (Reply(0), ""),
        (Reply(500, {}, b'{"error": "model output is not finite (output y: 1 of 1 values are NaN)"}'), ""),
        (Reply(500, {}, ERROR), "status 500"),
        (Reply(503, {}, ERROR), "status 503"),
        (Reply(302, {}, b""), "status 302"),
        (Reply(400, {}, b""), "without an error"),
        (Reply(400, {}, b'{"error": ""}'), "without an error"),
        (Reply(400, {}, b'{"error": {"a": 1}}'), "without an error"),
        (Reply(400, {}, b'{"error": "Traceback (most recent call last)"}'), "stack trace"),
        (Reply(400, {}, ERROR, seconds=60), "took 60.0 s"),
    ],
)
def test_an_answer_to_hostile_input_is_judged(reply: Reply, says: str) -> None:
    problem = hostile.problem_of(reply)
    assert says in problem
    assert bool(problem) == bool(says)


def test_crossed_and_failed_answers_of_a_batch_are_seen() -> None:
    expected = np.float32([1, 2, 3])

    def reply(number: str, data: list[float], status: int = 200) -> Reply:
        return Reply(status, {}, json.dumps({"id": number, "outputs": [{"data": data}]}).encode())

    assert batches._crossed(reply("7", [1, 2, 3]), 7, expected) == ""
    assert "got the answer of 8" in batches._crossed(reply("8", [1, 2, 3]), 7, expected)
    assert "instead of" in batches._crossed(reply("7", [1, 2, 4]), 7, expected)
    assert "answered 500" in batches._crossed(reply("7", [1, 2, 3], 500), 7, expected)
    assert batches._poisoned(Reply(400, {}, ERROR), 400) == ""
    assert "answered 200" in batches._poisoned(Reply(200, {}, b"{}"), 400)


def test_a_secret_in_any_place_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    subject = Subject(settings=Settings(home=tmp_path), key="YTpzZWNyZXQx", model="m", planted={"TOKEN": "planted"})
    monkeypatch.setattr(exposure, "abuses", lambda model: ())
    monkeypatch.setattr(exposure, "_places", lambda subject: [("a.log", b"... secret1 ..."), ("environ", b"TOKEN=planted"), ("b.log", b"")])
    assert exposure.secrets(subject).problems == ("API key's secret is in a.log", "TOKEN is in environ")


@given(hostile.cases("m"))
@settings(max_examples=50, deadline=None)
def test_hostile_cases_are_bytes_of_a_known_kind(case: hostile.Case) -> None:
    kind, data = case
    assert kind
    assert isinstance(data, bytes)
    assert data


def test_every_abuse_and_every_path_is_there_once() -> None:
    names = [(abuse.group, abuse.name) for abuse in abuses("m")]
    assert len(names) == len(set(names)) > 80
    assert sum(1 for _ in corpus()) > 8000


def test_the_raw_client_reads_answers_one_after_the_other_and_reconnects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            for answers in (
                [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", b"HTTP/1.1 400 x\r\ncontent-length: 14\r\n\r\n" + ERROR],
                [b"HTTP/1.1 204 x\r\n\r\n"],
            ):
                connection, _ = server.accept()
                with connection:
                    for answer in answers:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = RawConnection(port, timeout_s=5)
        assert connection.ask(request("GET", "/")).body == b"a"
        assert connection.ask(request("POST", "/", {}, b"x")).error == "x"
        assert connection.ask(request("GET", "/")).status == 204
        connection.close()
        thread.join(5)


def test_a_server_that_says_nothing_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimeoutError):
        ask_once(server.getsockname()[1], request("GET", "/"), timeout_s=0.05)
