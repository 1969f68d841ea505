"""The canary verdict, case by case and by its laws."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.verdict import SLOW_FLOOR_MS, judge
from registry.strategy import CanaryStep, Strategy, StrategyKind
from registry.verdict import Outcome, ReleaseCounters

BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, inf)


def strategy(**settings: float) -> Strategy:
    return Strategy(kind=StrategyKind.CANARY, steps=(CanaryStep(10.0, 30.0),), **settings)  # type: ignore[arg-type]


def counters(n: int, errors: int = 0, *, ms: Mapping[float, int] | None = None) -> ReleaseCounters:
    """`n` requests, of which `ms` says how many took how long; without it all took 8 ms."""
    latencies = {8.0: n} if ms is None else ms
    buckets = {bound: sum(count for took, count in latencies.items() if took < bound) for bound in BOUNDS}
    return ReleaseCounters(num_requests=n, num_errors=errors, latency_buckets=buckets)


@pytest.mark.parametrize(
    ("candidate", "live", "outcome", "says"),
    [
        (counters(120), counters(1080, 1), Outcome.PASS, r"error ratio 0 <= 0.01093 over 0 of 120 requests, live 0.0009259 over 1080"),
        (counters(50), counters(50), Outcome.PASS, r"slow ratio 0 <= 0.05 \(0 of 50 slower than 20 ms, live 0 of 50, live's p95 10 ms\)"),
        (counters(0), counters(0), Outcome.INCONCLUSIVE, r"candidate has 0 requests < 50; live has 0 requests < 50"),
        (ReleaseCounters(), ReleaseCounters(), Outcome.INCONCLUSIVE, r"candidate has 0 requests < 50"),
        (counters(49), counters(5000), Outcome.INCONCLUSIVE, r"candidate has 49 requests < 50"),
        (counters(5000), counters(49), Outcome.INCONCLUSIVE, r"live has 49 requests < 50"),
        (counters(5000), counters(0), Outcome.INCONCLUSIVE, r"live has 0 requests < 50"),
        (counters(100, 50), counters(900, 9), Outcome.FAIL, r"error ratio 0.5 > 0.02 over 50 of 100 requests, live 0.01 over 900 \(p "),
        (counters(20, 20), counters(100), Outcome.FAIL, r"error ratio 1 > 0.01 over 20 of 20 requests"),
        (counters(30, 3), counters(2970), Outcome.FAIL, r"error ratio 0.1 > 0.01 over 3 of 30 requests, live 0 over 2970 \(p 9e-07\)"),
        (counters(20, 20), counters(0), Outcome.FAIL, r"error ratio 1 over 20 requests, live had none"),
        (counters(3, 3), counters(10), Outcome.INCONCLUSIVE, r"p 0.0035; may be chance, more requests are needed"),
        (counters(60, 1), counters(540), Outcome.INCONCLUSIVE, r"error ratio 0.01667 > 0.01 over 1 of 60 requests.*may be chance"),
        (counters(1000, 5), counters(9000), Outcome.PASS, r"error ratio 0.005 <= 0.01"),
        (counters(500, 500), counters(500, 500), Outcome.INCONCLUSIVE, r"most requests fail on both sides"),
        (counters(100, 0), counters(100, 50), Outcome.PASS, r"error ratio 0 <= 0.51"),
        (counters(100, ms={80.0: 100}), counters(900), Outcome.FAIL, r"slow ratio 1 > 0.05 \(100 of 100 slower than 20 ms, live 0 of 900"),
        (counters(80, ms={80.0: 80}), counters(900), Outcome.FAIL, r"slow ratio 1 > 0.05 \(80 of 80 slower"),
        (counters(157, ms={8.0: 134, 80.0: 23}), counters(171), Outcome.INCONCLUSIVE, r"23 of 157 slower.*may be chance"),
        (counters(100, ms={8.0: 93, 80.0: 7}), counters(900), Outcome.INCONCLUSIVE, r"slow ratio 0.07 > 0.05.*may be chance"),
        (counters(100, ms={8.0: 95, 80.0: 5}), counters(900), Outcome.PASS, r"slow ratio 0.05 <= 0.05 \(5 of 100"),
        (
            counters(100, ms={3.0: 100}),
            counters(900, ms={0.0: 900}),
            Outcome.PASS,
            r"0 of 100 slower than 5 ms, live 0 of 900, live's p95 1 ms",
        ),
        (counters(100, ms={8.0: 100}), counters(900, ms={0.0: 900}), Outcome.FAIL, r"100 of 100 slower than 5 ms"),
        (counters(100, ms={999.0: 100}), counters(900, ms={999.0: 900}), Outcome.INCONCLUSIVE, r"live's p95 of inf ms is too near"),
    ],
    ids=[
        "good",
        "just enough",
        "nothing at all",
        "no counters",
        "candidate has too few",
        "live has too few",
        "live has none",
        "half fails",
        "all of twenty fail",
        "three of thirty fail",
        "all fail, live idle",
        "all of three fail",
        "one error of sixty",
        "few errors",
        "both broken",
        "live is worse",
        "ten times slower",
        "ten times slower, eighty requests",
        "one stall",
        "seven slow ones",
        "five slow ones",
        "slower below the floor",
        "above the floor",
        "beyond the bounds",
    ],
)
def test_verdicts(candidate: ReleaseCounters, live: ReleaseCounters, outcome: Outcome, says: str) -> None:
    verdict = judge(candidate, live, strategy())
    assert verdict.outcome is outcome, verdict
    assert re.search(says, "; ".join(verdict.reasons)), verdict


def test_the_candidate_may_be_as_slow_on_its_tail_as_live_is() -> None:
    tail = {8.0: 850, 320.0: 150}
    verdict = judge(counters(1000, ms=tail), counters(1000, ms=tail), strategy())
    assert verdict.outcome is not Outcome.FAIL


BROKEN = {
    "more errors than requests": ReleaseCounters(num_requests=1, num_errors=2),
    "negative": ReleaseCounters(num_requests=-1),
    "falling buckets": ReleaseCounters(num_requests=100, latency_buckets={1.0: 60, 2.0: 40, inf: 100}),
    "negative buckets": ReleaseCounters(num_requests=100, latency_buckets={1.0: -1, inf: 100}),
    "no infinity": ReleaseCounters(num_requests=100, latency_buckets={1.0: 60, 2.0: 100}),
    "more latencies than requests": ReleaseCounters(num_requests=100, latency_buckets={1.0: 60, inf: 150}),
    "fewer latencies than answers": ReleaseCounters(num_requests=100, latency_buckets={1.0: 60, inf: 60}),
    "no latencies": ReleaseCounters(num_requests=100),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_counters_that_contradict_themselves_are_an_error(broken: ReleaseCounters) -> None:
    for verdict in (judge(broken, counters(1000), strategy()), judge(counters(1000), broken, strategy())):
        assert verdict.outcome is Outcome.ERROR
        assert any(character.isdigit() for character in verdict.reasons[0])


def test_bounds_that_differ_are_an_error() -> None:
    other = ReleaseCounters(num_requests=100, latency_buckets={3.0: 50, inf: 100})
    verdict = judge(other, counters(100), strategy())
    assert verdict.outcome is Outcome.ERROR
    assert "different latency bounds" in verdict.reasons[0]


def test_errors_of_the_gateway_itself_have_no_latency_and_that_is_no_contradiction() -> None:
    refused = ReleaseCounters(num_requests=100, num_errors=100, latency_buckets=dict.fromkeys(BOUNDS, 0))
    assert judge(refused, counters(900), strategy()).outcome is Outcome.FAIL


def test_the_strategy_decides_what_is_tolerated() -> None:
    worse, slower = counters(1000, 30), counters(1000, ms={30.0: 1000})
    assert judge(worse, counters(9000), strategy()).outcome is Outcome.FAIL
    assert judge(worse, counters(9000), strategy(max_error_ratio_increase=0.05)).outcome is Outcome.PASS
    assert judge(slower, counters(9000), strategy()).outcome is Outcome.FAIL
    assert judge(slower, counters(9000), strategy(max_slow_ratio=4.0)).outcome is Outcome.PASS
    assert judge(counters(60), counters(60), strategy(min_samples=61)).outcome is Outcome.INCONCLUSIVE


def test_nothing_below_the_floor_is_slow() -> None:
    assert SLOW_FLOOR_MS == 5.0


# --- laws


@st.composite
def some_counters(draw: st.DrawFn) -> ReleaseCounters:
    ms = draw(st.dictionaries(st.sampled_from([0.0, 1.0, 4.0, 9.0, 30.0, 100.0, 900.0]), st.integers(0, 400), max_size=5))
    n = sum(ms.values())
    return counters(n, draw(st.integers(0, n)), ms=ms)


@given(some_counters(), some_counters(), st.integers(1, 200))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_verdict_always_has_reasons_with_numbers_and_pass_has_its_samples(
    candidate: ReleaseCounters, live: ReleaseCounters, min_samples: int
) -> None:
    verdict = judge(candidate, live, strategy(min_samples=min_samples))
    assert verdict.reasons
    assert all(any(character.isdigit() for character in reason) for reason in verdict.reasons)
    if verdict.outcome is Outcome.PASS:
        assert min(candidate.num_requests, live.num_requests) >= min_samples
        assert candidate.num_errors / candidate.num_requests <= live.num_errors / live.num_requests + 0.01


@given(some_counters(), st.integers(1, 200))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_identical_counters_never_fail(same: ReleaseCounters, min_samples: int) -> None:
    assert judge(same, same, strategy(min_samples=min_samples)).outcome in {Outcome.PASS, Outcome.INCONCLUSIVE}


@given(some_counters(), some_counters(), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_more_errors_never_make_it_better(candidate: ReleaseCounters, live: ReleaseCounters, data: st.DataObject) -> None:
    more = data.draw(st.integers(candidate.num_errors, candidate.num_requests))
    worse = ReleaseCounters(num_requests=candidate.num_requests, num_errors=more, latency_buckets=candidate.latency_buckets)
    order = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
    assert order.index(judge(worse, live, strategy()).outcome) >= order.index(judge(candidate, live, strategy()).outcome)
