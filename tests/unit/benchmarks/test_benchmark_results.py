"""What the benchmarks count as wrong, and how they compare."""

from __future__ import annotations

import pytest

from benchmarks.goals import of_servers
from benchmarks.http_client import Measured
from benchmarks.mlp import expected_logits, is_right, rows
from benchmarks.rates import BINARY, JSON, Cell, Rates
from benchmarks.releases import API, PROMOTION, WARM, Releases, Trial
from benchmarks.report_servers import STOCK
from benchmarks.servers.modelway import GATEWAY, NODE, SOCKETS, TITLES
from modelway.load import Answer

LOGITS = {version: expected_logits(rows(1), version)[0] for version in (1, 2)}
PROMOTED = Trial(kind=PROMOTION, via=API, version=2, given_at=1.0, acknowledged_at=2.0)
ROLLED_BACK = Trial(kind=WARM, via=API, version=1, given_at=4.0, acknowledged_at=5.0)


def answer(sent_at: float, version: int, *, latency_s: float = 0.1, status: int = 200, numbers_of: int | None = None) -> Answer:
    body = {"outputs": [{"data": LOGITS[numbers_of or version].tolist()}]}
    return Answer(item=0, sent_at=sent_at, due_at=sent_at, latency_s=latency_s, status=status, version=str(version), body=body)


def wrong(*answers: Answer) -> list[int]:
    releases = Releases(trials=[PROMOTED, ROLLED_BACK], answers=answers)
    by_kind = {row.kind: row.num_wrong_version for row in releases.rows}
    assert len(releases.wrong_versions) == sum(by_kind.values())
    return [by_kind[PROMOTION], by_kind[WARM]]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param([answer(2.5, 2), answer(5.5, 1)], [0, 0], id="right"),
        pytest.param([answer(1.5, 1), answer(1.6, 2)], [0, 0], id="before-the-acknowledgement-either"),
        pytest.param([answer(2.5, 1)], [1, 0], id="old-version-after-a-promotion"),
        pytest.param([answer(5.5, 2)], [0, 1], id="bad-version-after-a-rollback"),
        pytest.param([answer(3.9, 1, latency_s=0.5)], [0, 0], id="sent-before-the-next-command-answered-after-it"),
        pytest.param([answer(2.5, 1, latency_s=1.4)], [1, 0], id="answered-before-the-next-command"),
    ],
)
def test_wrong_versions_are_counted(answers: list[Answer], expected: list[int]):
    assert wrong(*answers) == expected


def test_an_answer_with_the_numbers_of_another_version_is_a_failure():
    bad = [answer(1.0, 1), answer(1.1, 1, status=503), answer(1.2, 2, numbers_of=1)]
    failures = Releases(trials=[PROMOTED], answers=bad).failures
    assert [failure[:12] for failure in failures] == ["status 503: ", "not the numb"]


def test_the_numbers_of_one_version_are_never_those_of_another():
    assert is_right(LOGITS[1].tolist(), LOGITS[1])
    assert not is_right(LOGITS[2].tolist(), LOGITS[1])
    assert not is_right({"error": "x"}, LOGITS[1])


def cell(server: str, rate: float, *, number: int = 0, connections: int = 32, form: str = BINARY, **found: float) -> Cell:
    measured = Measured(requests_per_s=rate, **({"p50_ms": 1.0, "p99_ms": 2.0} | found))
    return Cell(server=server, form=form, connections=connections, fraction=0.0, round=number, measured=measured)


def test_ratios_are_medians_of_the_ratios_of_each_round():
    """A machine that halves its speed for one round changes no ratio."""
    rates = Rates(
        [
            cell(server, speed * base * at, number=number, connections=connections)
            for number, speed in enumerate((1.0, 0.5, 1.0))
            for connections, at in ((8, 0.5), (32, 1.0))
            for server, base in ((GATEWAY, 30), (STOCK, 10))
        ]
    )
    best = rates.best(GATEWAY, BINARY)
    assert (best.requests_per_s, best.slowest_per_s, best.fastest_per_s, best.connections) == (30, 15, 30, 32)
    assert rates.ratio_of_best(GATEWAY, STOCK, BINARY) == 3.0
    assert rates.ratio_of_best(GATEWAY, STOCK, JSON) is None


def test_goals_are_computed_from_the_better_of_the_entries():
    cells = [cell(SOCKETS, 60), cell(GATEWAY, 30, p99_ms=5.0), cell("Triton", 20, p99_ms=5.0), cell("Triton, queue delay", 25, p99_ms=8.0)]
    cells += [cell(GATEWAY, 1, connections=1, p50_ms=0.5), cell("Triton", 1, connections=1, p50_ms=1.0), cell("stock", 31)]
    found = {goal.text: (goal.found, goal.verdict) for goal in of_servers(Rates(cells))}
    assert found["workers' sockets, binary: best rate, times Triton's"] == (2.4, "not met: 20% too little")
    assert found["gateway, binary: best rate, times the best of all others"] == (pytest.approx(30 / 31), "not met: 3% too little")
    assert found["gateway, binary: p99 at 32 connections, times Triton's"] == (1.0, "met")
    assert found["gateway, binary: p50 at 1 connection, times Triton's"] == (0.5, "met")
    assert found["gateway, JSON: p50 at 1 connection, times Triton's"] == (None, "not measured")


def test_a_server_without_answers_meets_no_goal():
    cells = [cell(GATEWAY, 0, p50_ms=0.0, p99_ms=0.0, failed=3), cell("Triton", 20)]
    goals = {goal.text: goal.met for goal in of_servers(Rates(cells))}
    assert goals["gateway, binary: best rate, times the best of all others"] is False
    assert goals["gateway, binary: p99 at 32 connections, times Triton's"] is None


def test_a_failed_request_is_told():
    cells = [cell(server, 10, failed=1, first_failure="status 503") for server in (NODE, "Triton")]
    (failure,) = Rates(cells).failures(TITLES)
    assert NODE in failure
    assert "1 failed: status 503" in failure
