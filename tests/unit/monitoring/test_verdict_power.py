"""How often the verdict is wrong when it is asked again and again: simulated roll-outs with fixed seeds.

The controller aborts at the first FAIL of many looks, so a roll-out is simulated with all of its looks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from monitoring.verdict import judge
from registry.strategy import CanaryStep, Strategy, StrategyKind
from registry.verdict import Outcome, ReleaseCounters

BOUNDS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 28, 40, 57, 80, 110, 160, 230, 320, 450, 640, 900, inf)
STRATEGY = Strategy(kind=StrategyKind.CANARY, steps=(CanaryStep(10.0, 30.0),))

Floats = NDArray[np.float64]
Latency = Callable[[np.random.Generator, int], Floats]


def lognormal(median_ms: float, sigma: float) -> Latency:
    return lambda random, n: random.lognormal(np.log(median_ms), sigma, n)


def bimodal(random: np.random.Generator, n: int) -> Floats:
    """Three in a hundred take fifty times as long: garbage collection, a cold cache."""
    return random.lognormal(np.log(4.0), 0.3, n) * np.where(random.random(n) < 0.03, 50.0, 1.0)


def rollout(
    seed: int, *, share: float, errors: tuple[float, float], latency: tuple[Latency, Latency], num_requests: int, looks: int
) -> tuple[Outcome, int]:
    """The first FAIL, or the last look's outcome, and after how many requests. Pairs are (candidate, live)."""
    random = np.random.default_rng(seed)
    to_candidate = random.random(num_requests) < share
    failed = random.random(num_requests) < np.where(to_candidate, *errors)
    took = np.where(to_candidate, latency[0](random, num_requests), latency[1](random, num_requests))
    outcome = Outcome.INCONCLUSIVE
    for seen in np.linspace(num_requests / looks, num_requests, looks).astype(int):
        sides = [_counters(side[:seen], failed[:seen], took[:seen]) for side in (to_candidate, ~to_candidate)]
        outcome = judge(sides[0], sides[1], STRATEGY).outcome
        if outcome is Outcome.FAIL:
            return outcome, int(seen)
    return outcome, num_requests


def _counters(side: NDArray[np.bool_], failed: NDArray[np.bool_], took: Floats) -> ReleaseCounters:
    counts = np.searchsorted(np.sort(took[side]), BOUNDS)
    buckets = {float(bound): int(count) for bound, count in zip(BOUNDS, counts, strict=True)}
    return ReleaseCounters(num_requests=int(side.sum()), num_errors=int((side & failed).sum()), latency_buckets=buckets)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(
    ("error_ratio", "latency"), [(0.0, lognormal(0.6, 0.5)), (0.002, bimodal), (0.03, lognormal(8, 0.8))], ids=["fast", "two modes", "wide"]
)
def test_a_twin_of_the_live_release_is_not_aborted(share: float, error_ratio: float, latency: Latency) -> None:
    rollouts = [
        rollout(seed, share=share, errors=(error_ratio, error_ratio), latency=(latency, latency), num_requests=4000, looks=40)
        for seed in range(100)
    ]
    assert sum(outcome is Outcome.FAIL for outcome, _ in rollouts) <= 1


@pytest.mark.parametrize(("share", "num_requests"), [(0.01, 30000), (0.1, 6000), (0.5, 3000)])
def test_five_percent_errors_are_found(share: float, num_requests: int) -> None:
    latency = lognormal(8, 0.8)
    rollouts = [
        rollout(seed, share=share, errors=(0.05, 0.001), latency=(latency, latency), num_requests=num_requests, looks=30)
        for seed in range(40)
    ]
    assert sum(outcome is Outcome.FAIL for outcome, _ in rollouts) >= 38
    assert all(outcome is not Outcome.PASS for outcome, _ in rollouts)


@pytest.mark.parametrize("median_ms", [0.8, 8.0])
def test_ten_times_slower_is_found_within_a_hundred_requests(median_ms: float) -> None:
    pair = (lognormal(10 * median_ms, 0.4), lognormal(median_ms, 0.4))
    rollouts = [rollout(seed, share=0.1, errors=(0.0, 0.0), latency=pair, num_requests=1500, looks=50) for seed in range(40)]
    assert all(outcome is Outcome.FAIL for outcome, _ in rollouts)
    assert np.median([seen * 0.1 for _, seen in rollouts]) < 100


def with_one_stall(latency: Latency, *, num_stalled: int) -> Latency:
    """A worker that is not scheduled for a while: that many requests in a row take half a second."""

    def took(random: np.random.Generator, n: int) -> Floats:
        values = latency(random, n)
        start = int(random.integers(0, n - num_stalled))
        values[start : start + num_stalled] = 500.0
        return values

    return took


@pytest.mark.parametrize("num_stalled", [20, 40])
def test_one_stall_of_the_machine_aborts_nobody(num_stalled: int) -> None:
    pair = (with_one_stall(lognormal(8, 0.4), num_stalled=num_stalled), lognormal(8, 0.4))
    rollouts = [rollout(seed, share=0.5, errors=(0.0, 0.0), latency=pair, num_requests=600, looks=30) for seed in range(100)]
    assert sum(outcome is Outcome.FAIL for outcome, _ in rollouts) <= 1
