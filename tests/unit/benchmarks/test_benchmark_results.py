"""What the benchmarks count as wrong, and how they compare."""

from __future__ import annotations

import pytest

from benchmarks.http_client import Cell
from benchmarks.mlp import expected_logits, is_right, rows
from benchmarks.releases import API, PROMOTION, WARM, Releases, Trial
from benchmarks.throughput import CONNECTIONS, GATEWAY, NODE, STOCK, Throughput
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


def test_ratios_are_medians_of_the_ratios_of_each_round():
    """A machine that halves its speed for one round changes no ratio."""
    rounds = [
        [
            Cell(target=t, connections=c, requests_per_s=speed * base)
            for c in CONNECTIONS
            for t, base in ((GATEWAY, 30), (NODE, 50), (STOCK, 10))
        ]
        for speed in (1.0, 0.5, 1.0)
    ]
    rates = Throughput(rounds=rounds, engine_rounds=[{1: 80.0, 32: 160.0}] * 3, duration_s=1.0, num_stock_workers=1)
    assert [(row.requests_per_s, row.range_requests_per_s, row.ratio_to_stock) for row in rates.rows[:3]] == [
        (30, (15, 30), 3.0),
        (50, (25, 50), 5.0),
        (10, (5, 10), 1.0),
    ]
    assert [row.ratio_to_stock for row in rates.engine_rows] == [8.0, 16.0]


def test_a_failed_request_is_told():
    cells = [
        Cell(target=t, connections=c, failed=int(t == NODE), first_failure="status 503")
        for c in CONNECTIONS
        for t in (GATEWAY, NODE, STOCK)
    ]
    throughput = Throughput(rounds=[cells], engine_rounds=[], duration_s=1.0, num_stock_workers=1)
    assert throughput.failures == [f"{NODE} at {c} connections: 1 failed, first: status 503" for c in CONNECTIONS]
