"""Latency: sizes take turns, blocks vote, and a goal is a check. Nothing here looks at how long anything took."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.batches import Rows
from training.export.certificate import latency
from training.export.certificate.latency import latency_check, measure_latency


class Recording:
    """Answers at once, on a clock of its own: a row takes a millisecond."""

    provider = wanted_provider = "cpu"

    def __init__(self, monkeypatch, busy_calls=frozenset()):
        self.sizes: list[int] = []
        self.now_s = 0.0
        self.busy_calls = busy_calls
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now_s)

    def run(self, inputs):
        size = len(inputs["x"])
        self.now_s += size / 1000 * (100 if len(self.sizes) in self.busy_calls else 1)
        self.sizes.append(size)
        return {"y": inputs["x"]}


ROWS = Rows(inputs={"x": np.zeros((40, 1), np.float32)}, target=np.zeros(40))


def test_batch_sizes_take_turns_after_the_warm_up(monkeypatch):
    runner = Recording(monkeypatch)
    found = measure_latency(runner, ROWS)
    measured = runner.sizes[-sum(int(entry["calls"]) for entry in found.values()) :]
    turns = [1] * 32 + [8] * 4 + [32]
    assert measured == turns * (len(measured) // len(turns))
    assert runner.sizes[:3] == [1, 1, 1]
    for size in (1, 8, 32):
        assert found[f"batch_{size}"]["p50_ms"] == pytest.approx(size)
        assert found[f"batch_{size}"]["p99_ms"] == pytest.approx(size)
        assert found[f"batch_{size}"]["rows_per_s"] == pytest.approx(1000)


def test_it_ends_in_time_and_slow_variants_are_still_asked_a_few_times(monkeypatch):
    runner = Recording(monkeypatch)
    found = measure_latency(runner, ROWS)
    assert runner.now_s < 2.0
    slow = Recording(monkeypatch, busy_calls=frozenset(range(10_000)))
    found = measure_latency(slow, ROWS)
    assert {name: entry["calls"] for name, entry in found.items()} == {"batch_1": 6, "batch_8": 3, "batch_32": 3}


def test_one_busy_block_does_not_decide(monkeypatch):
    quiet = Recording(monkeypatch)
    measure_latency(quiet, ROWS)
    last = len(quiet.sizes)
    busy = Recording(monkeypatch, busy_calls=frozenset(range(last - 6, last)))  # the end of the last block
    assert measure_latency(busy, ROWS)["batch_1"]["p99_ms"] == pytest.approx(1.0)


@pytest.mark.parametrize(("goal_ms", "passes"), [(2.0, True), (1.99, False)])
def test_the_goal_is_about_one_row_at_the_99th_percentile(goal_ms, passes):
    check = latency_check({"batch_1": {"p50_ms": 1.0, "p99_ms": 2.0, "rows_per_s": 1000.0, "calls": 360}}, goal_ms)
    assert (check.name, check.passed, check.value, check.limit) == ("latency/batch_1/p99_ms", passes, 2.0, goal_ms)
