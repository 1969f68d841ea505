"""P17 to P21 and P24 on the real platform, short; `make reliability` does the same in full."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from benchmarks.reliability import batches, exposure, hostile, overload, platform, slow_clients
from benchmarks.reliability.abuse import Abuse, abuses
from benchmarks.reliability.proof import Proof, Subject
from benchmarks.reliability.raw_http import ask_once
from benchmarks.reliability.report import render
from modelway.gateway_access import open_client
from serving.api_keys import KeyFile, new_key
from support.polling import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with platform.running(tmp_path_factory.mktemp("reliability"), slow_iterations=8000) as running:
        yield running


def holds(proof: Proof) -> bool:
    assert proof.problems == (), f"{proof.promise}: {proof.figures}"
    return proof.holds


@pytest.mark.parametrize("abuse", abuses(platform.MODEL), ids=lambda abuse: f"{abuse.group}: {abuse.name}")
def test_p18_each_abuse_has_its_answer(subject: Subject, abuse: Abuse) -> None:
    reply = ask_once(subject.port, abuse.bytes_with(subject.key))
    assert reply.status == abuse.status, reply.body
    assert abuse.says in reply.error
    assert reply.error, "an abuse without a word"
    assert hostile.problem_of(reply) == "" or abuse.status == 500


def test_p17_only_the_intended_sockets_listen_where_keys_are_asked_for(subject: Subject) -> None:
    assert holds(exposure.sockets(subject))


def test_p17_no_path_reaches_what_is_behind(subject: Subject) -> None:
    assert holds(exposure.paths(subject, every=10))


def test_p18_hostile_input_of_all_kinds(subject: Subject) -> None:
    assert holds(hostile.run(subject, 600))


def test_p19_batch_mates(subject: Subject) -> None:
    rows, expected = platform.expected_answers(64)
    assert holds(batches.run(subject, expected, rows, 40))


def test_p20_overload_is_refused_with_words_and_ends_with_the_overload(subject: Subject) -> None:
    """Goodput is a figure of a quiet machine, and is for `make reliability`."""
    proof = overload.run(subject, 12.0)
    assert [problem for problem in proof.problems if "goodput" not in problem] == [], proof.figures


def test_p21_slow_clients_fail_nobody(subject: Subject) -> None:
    """What they cost in latency is for `make reliability`."""
    proof = slow_clients.run(subject, 200, 3.0, 1)
    assert [problem for problem in proof.problems if "p99" not in problem] == [], proof.figures


def test_p24_no_secret_is_anywhere(subject: Subject) -> None:
    assert holds(exposure.secrets(subject))


def test_a_new_key_works_within_seconds_and_a_removed_one_no_longer(subject: Subject) -> None:
    assert subject.settings.api_keys_file is not None
    file = KeyFile(subject.settings.api_keys_file)
    key, word = new_key("late")
    url = f"{subject.settings.gateway_url}/v2/models/{subject.model}"

    def status() -> int:
        return httpx.get(url, headers={"x-api-key": word}).status_code

    assert status() == 401
    file.add(key)
    wait_until(lambda: status() == 200, what="the new key")
    file.remove("late")
    wait_until(lambda: status() == 401, what="the end of the key")


def test_the_platforms_own_client_sends_its_key(subject: Subject) -> None:
    with open_client(subject.settings.model_copy(update={"api_key": subject.key})) as client:
        assert client.signature(subject.model).inputs[0].name == "input"


def test_the_document_shows_what_does_not_hold() -> None:
    good = Proof(promise="P18", title="Hostile input", figures={"cases": "1"})
    bad = Proof(promise="P20", title="Overload", figures={"goodput": "3/s"}, problems=("goodput is 3/s",))
    text = render([good, bad], {"Processor": "x"}, command="c", date="2026-01-01", quick=False)
    assert "| Hostile input | holds |" in text
    assert "| Overload | **does not hold** |" in text
    assert "- goodput is 3/s" in text
