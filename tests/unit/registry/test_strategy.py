"""Strategies: how canary steps are written, and which are none."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from registry.bundle import canonical_json
from registry.errors import UsageError
from registry.strategy import DEFAULT_CANARY, IMMEDIATE, CanaryStep, Strategy, StrategyKind, parse_canary_steps


def canary(*steps: CanaryStep, **changes: float) -> Strategy:
    return Strategy(kind=StrategyKind.CANARY, steps=steps, **changes)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("10%:30s", [(10.0, 30.0)]),
        ("0.5%:1.5m, 10%:1h", [(0.5, 90.0), (10.0, 3600.0)]),
        (DEFAULT_CANARY, [(1.0, 30.0), (10.0, 60.0), (50.0, 60.0)]),
        ("0.0001%:0s,99.9999%:0s", [(0.0001, 0.0), (99.9999, 0.0)]),
    ],
)
def test_steps_are_parsed(text: str, steps: list[tuple[float, float]]):
    assert [(step.percent, step.duration_s) for step in parse_canary_steps(text)] == steps


@pytest.mark.parametrize(
    "text", ["", "10", "10%", "10%:30", "10:30s", "-1%:3s", "1e1%:3s", "nan%:3s", "10%:-3s", "10%:3d", "10%:3s,", "٣%:3s"]
)
def test_what_is_no_step_is_named_with_an_example(text: str):
    with pytest.raises(UsageError, match=rf"not a canary step .*{DEFAULT_CANARY}"):
        parse_canary_steps(text)


@pytest.mark.parametrize("text", ["0%:1s", "0.00001%:1s", "100%:1s", "150%:1s"])
def test_a_share_lies_between_nothing_and_everything(text: str):
    with pytest.raises(UsageError, match="invalid canary step"):
        parse_canary_steps(text)


@pytest.mark.parametrize(("percent", "duration_s"), [(nan, 1), (10, nan), (10, inf), (10, -1), (inf, 1)])
def test_a_step_s_numbers_are_numbers(percent: float, duration_s: float):
    with pytest.raises(UsageError, match="invalid canary step"):
        CanaryStep(percent, duration_s)


def test_steps_rise():
    canary(CanaryStep(1, 5), CanaryStep(2, 5))
    for steps in ((CanaryStep(2, 5), CanaryStep(1, 5)), (CanaryStep(1, 5), CanaryStep(1, 9))):
        with pytest.raises(UsageError, match="canary steps must rise"):
            canary(*steps)


def test_steps_go_with_a_canary_and_nothing_else():
    with pytest.raises(UsageError, match="strategy canary does not go with 0 steps"):
        canary()
    with pytest.raises(UsageError, match="strategy immediate does not go with 1 steps"):
        Strategy(kind=StrategyKind.IMMEDIATE, steps=(CanaryStep(1, 5),))


@pytest.mark.parametrize("name", ["hold_s", "max_error_ratio_increase", "max_slow_ratio"])
@pytest.mark.parametrize("value", [-0.1, nan, inf])
def test_limits_are_numbers(name: str, value: float):
    with pytest.raises(UsageError, match=f"{name} must be a number of 0 or more"):
        canary(CanaryStep(1, 5), **{name: value})


def test_a_verdict_needs_samples():
    with pytest.raises(UsageError, match="min_samples"):
        Strategy(kind=StrategyKind.IMMEDIATE, min_samples=0)


@pytest.mark.parametrize("made", [IMMEDIATE, canary(CanaryStep(0.5, 1.5), CanaryStep(50, 0), hold_s=7.0, max_slow_ratio=3.0)], ids=str)
def test_it_comes_back_from_json(made: Strategy):
    assert Strategy.from_json(json.loads(canonical_json(made.to_json()))) == made
