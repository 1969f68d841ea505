"""The search of a tuning, on measurements that are made up: what is tried, who goes on, what is chosen."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isclose

import pytest

from registry.errors import UsageError
from registry.tuning import WorkerLayout
from serving.tuning.search import Goal, Measured, Round, choose, grid, rounds, second_chance, survivors
from serving.tuning.tune import TuneOptions, search

GOAL = Goal(limit_p99_ms=20)


def layout(workers: int = 1, threads: int = 1, batch: int = 16) -> WorkerLayout:
    return WorkerLayout(num_workers=workers, num_threads=threads, batch_size=batch)


def measured(rate: float, p99: float, problem: str = "", **of: int) -> Measured:
    return Measured(layout=layout(**of), requests_per_s=rate, p50_ms=p99 / 2, p99_ms=p99, seconds=1, problem=problem)


# --- what is tried


@pytest.mark.parametrize(
    ("cores", "max_workers", "pairs"),
    [
        (1, None, [(1, 1)]),
        (2, None, [(1, 1), (1, 2), (2, 1)]),
        (2, 1, [(1, 1), (1, 2)]),
        (2, 4, [(1, 1), (1, 2), (2, 1), (4, 1)]),
        (6, None, [(1, 1), (1, 2), (1, 4), (1, 6), (2, 1), (2, 2), (4, 1), (6, 1)]),
    ],
)
def test_the_grid_asks_for_no_more_cores_than_there_are(cores: int, max_workers: int | None, pairs: list[tuple[int, int]]) -> None:
    tried = grid(cores, max_workers=max_workers)
    assert sorted({(each.num_workers, each.num_threads) for each in tried}) == pairs
    assert len(tried) == len(set(tried)) == 4 * len(pairs)


def test_no_batch_limit_is_tried_that_one_run_may_not_have() -> None:
    assert {each.batch_size for each in grid(1, max_batch=20)} == {1, 4, 16}
    assert {each.batch_size for each in grid(1, max_batch=1)} == {1}


@pytest.mark.parametrize(("num_layouts", "sizes"), [(1, [1]), (3, [3]), (4, [4, 2]), (12, [12, 6, 3]), (32, [32, 16, 8, 4, 2])])
def test_every_round_has_the_same_time_and_half_of_the_layouts(num_layouts: int, sizes: list[int]) -> None:
    plan = rounds(num_layouts, 300, start_s=1)
    assert [each.num_layouts for each in plan] == sizes
    assert all(isclose(each.num_layouts * each.seconds, (300 - sum(sizes)) / len(sizes)) for each in plan)


def test_a_budget_that_is_too_short_names_one_that_is_not() -> None:
    with pytest.raises(UsageError, match=r"a budget of 20 s is too short for 12 layouts\. Give --budget-s 57 or more"):
        rounds(12, 20, start_s=1)
    assert rounds(12, 57, start_s=1)[0] == Round(12, 1.0)


# --- who goes on


def test_half_goes_on_by_what_it_promises() -> None:
    fast_and_late, slow_and_right = measured(7400, 25, workers=2), measured(5000, 18)
    late, broken = measured(7000, 200, batch=64), measured(9000, 1, "500 the model failed", batch=4)
    everything = [late, broken, slow_and_right, fast_and_late]
    assert survivors(everything, GOAL, 3) == [slow_and_right.layout, fast_and_late.layout, late.layout]
    assert survivors(everything, GOAL, 1) == [slow_and_right.layout]
    assert survivors([late, broken, fast_and_late], GOAL, 2) == [fast_and_late.layout, late.layout]


def test_what_holds_the_limit_is_not_crowded_out_by_what_is_far_above_it() -> None:
    right = [measured(3000 + rate, 13, batch=rate) for rate in (1, 4, 16)]
    late = [measured(20_000 + rate, 40, batch=64, workers=rate) for rate in (1, 2, 3)]
    kept = survivors([*right, *late], GOAL, 4)
    assert kept == [right[2].layout, right[1].layout, late[2].layout, late[1].layout]


# --- what is chosen


def test_the_highest_throughput_of_those_that_hold_the_limit() -> None:
    assert choose([measured(9000, 20.1), measured(8000, 20.0, batch=4), measured(1000, 1, batch=1)], GOAL).requests_per_s == 8000


def test_one_failed_request_is_no_holding() -> None:
    assert choose([measured(9000, 5, "503"), measured(100, 19, batch=1)], GOAL).requests_per_s == 100


def test_of_what_cannot_be_told_apart_the_one_that_needs_less() -> None:
    big, small, smaller = measured(1000, 5, workers=4), measured(975, 9, batch=4), measured(960, 2, batch=1)
    assert choose([big, small, smaller], GOAL) is small
    assert choose([big, small, replace(small, layout=layout(batch=1), p99_ms=8)], GOAL).layout == layout(batch=1)


def test_if_none_holds_the_nearest() -> None:
    nearest = choose([measured(9000, 40), measured(100, 21, batch=1), Measured.failed(layout(2), "no memory")], GOAL)
    assert nearest.p99_ms == 21
    assert not GOAL.holds(nearest)


def test_a_rate_must_be_kept_up_with() -> None:
    goal = Goal(limit_p99_ms=20, rate_per_s=500)
    assert not goal.holds(measured(470, 5))
    assert goal.holds(measured(480, 5))
    assert choose([measured(500, 5, workers=2), measured(499, 9)], goal).layout.num_workers == 1


@pytest.mark.parametrize("wrong", [{"limit_p99_ms": 0}, {"limit_p99_ms": inf}, {"limit_p99_ms": 1, "rate_per_s": 0}])
def test_a_goal_is_a_number(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        Goal(**wrong)


def test_a_second_chance_is_for_the_best_that_held_and_had_to_go() -> None:
    final, gone, worse = measured(900, 30), measured(500, 10, batch=4), measured(400, 5, batch=1)
    latest = {each.layout: each for each in (final, gone, worse)}
    assert second_chance(latest, [final.layout], GOAL) == gone.layout
    assert second_chance({**latest, final.layout: measured(900, 19)}, [final.layout], GOAL) is None
    assert second_chance({final.layout: final}, [final.layout], GOAL) is None


# --- the story


class World:
    """Layouts whose truth is known; the clock moves while one measures."""

    def __init__(self, truth: dict[WorkerLayout, tuple[float, float]], first_look: dict[WorkerLayout, float] | None = None) -> None:
        self.truth, self.first_look = truth, first_look or {}
        self.now = 100.0
        self.seconds: dict[WorkerLayout, list[float]] = {}

    def measure(self, of: WorkerLayout, seconds: float) -> Measured:
        self.now += seconds * 1.2 + 1
        seen = self.seconds.setdefault(of, [])
        rate, p99 = self.truth[of]
        seen.append(seconds)
        return Measured(
            layout=of,
            requests_per_s=rate,
            p50_ms=1,
            p99_ms=self.first_look.get(of, p99) if len(seen) == 1 else p99,
            seconds=seconds,
        )


def options(**changes: float) -> TuneOptions:
    return TuneOptions(goal=GOAL, num_cores=2, budget_s=changes.get("budget_s", 120))


def test_the_best_is_found_and_measured_longest_within_the_budget() -> None:
    layouts = grid(2)
    world = World({each: (1000.0 * each.num_cores + 100 * each.batch_size, 5.0 + each.batch_size / 2) for each in layouts})
    tuned = search(layouts, options(), world.measure, start_s=1, clock=lambda: world.now, progress=lambda _: None)
    assert tuned.holds
    assert tuned.choice.layout == layout(1, 2, 16)  # the batch of 64 is above the limit; two workers are no faster
    assert len(world.seconds[tuned.choice.layout]) == 3
    assert world.seconds[tuned.choice.layout][-1] == max(seconds for times in world.seconds.values() for seconds in times)
    assert world.now - 100 == pytest.approx(120)
    assert {m.layout for m in tuned.measured} == set(layouts)


def test_a_layout_that_was_passed_over_is_measured_again_when_the_finalists_fail() -> None:
    layouts = grid(2)
    modest = layout(1, 1, 1)
    world = World(
        {each: (1000.0 * each.num_cores + each.batch_size, 30.0) for each in layouts} | {modest: (100.0, 10.0)},
        first_look=dict.fromkeys((layout(1, 2, 64), layout(2, 1, 64), layout(1, 2, 16)), 15.0),
    )
    tuned = search(layouts, options(), world.measure, start_s=0.5, clock=lambda: world.now, progress=lambda _: None)
    assert tuned.holds
    assert tuned.choice.layout == modest
    assert tuned.choice.seconds > 5


def test_nothing_holds() -> None:
    layouts = grid(1)
    world = World({each: (10.0 * each.batch_size, 100.0 + each.batch_size) for each in layouts})
    tuned = search(layouts, options(), world.measure, start_s=1, clock=lambda: world.now, progress=lambda _: None)
    assert not tuned.holds
    assert tuned.choice.p99_ms > GOAL.limit_p99_ms
