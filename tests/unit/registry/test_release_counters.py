"""Counters of a release: windows and resets."""

from __future__ import annotations

import json
from math import inf

from registry.bundle import canonical_json
from registry.verdict import Outcome, ReleaseCounters, Verdict

START = ReleaseCounters(num_requests=10, num_errors=1, latency_buckets={1.0: 4, 5.0: 8, inf: 10})
END = ReleaseCounters(num_requests=30, num_errors=1, latency_buckets={1.0: 10, 5.0: 20, 10.0: 25, inf: 30})


def test_a_window_is_the_difference():
    assert END.since(START) == ReleaseCounters(num_requests=20, num_errors=0, latency_buckets={1.0: 6, 5.0: 12, 10.0: 25, inf: 20})
    assert END.since(ReleaseCounters()) == END
    assert END.since(END) == ReleaseCounters(num_requests=0, num_errors=0, latency_buckets=dict.fromkeys(END.latency_buckets, 0))


def test_a_reset_gives_no_window():
    assert START.since(END) is None
    assert ReleaseCounters(num_requests=40, num_errors=0).since(START) is None


def test_counters_come_back_from_json():
    assert ReleaseCounters.from_json(json.loads(canonical_json(END.to_json()))) == END


def test_a_verdict_is_recorded_with_its_reasons():
    assert Verdict(Outcome.FAIL, ("error ratio 0.031 > 0.010",)).to_json() == {"outcome": "fail", "reasons": ["error ratio 0.031 > 0.010"]}
