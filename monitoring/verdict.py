"""What the counters of a candidate mean, beside those of the live release over the same window. Pure.

    candidate 0 of 120 failed, live 1 of 1,080; 2 of 120 slower than 20 ms             PASS
    candidate 3 of 30 failed, live 0 of 2,970     Fisher's exact p = 9e-07              FAIL, although 30 < 50 samples
    candidate 1 of 60 failed, live 0 of 540       ratio +0.017 > 0.010, but p = 0.1    INCONCLUSIVE: one error may be chance
    candidate 30 requests, none failed                                                  INCONCLUSIVE: 20 more are needed

The controller asks at every look, several times a second, and aborts at the first FAIL. So a test's level must hold
over all looks together, not once: `LEVEL` is that much smaller than the 1% of false aborts that are allowed
(tests/unit/monitoring/test_verdict_power.py measures it, looks included).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

from registry.strategy import Strategy
from registry.verdict import Outcome, ReleaseCounters, Verdict

LEVEL = 2e-4
SLOW_SHARE = 0.05  # what p95 means: this share of live's own requests is slower than it
SLOW_FLOOR_MS = 5.0  # below this nothing is slow: the clock counts whole milliseconds, and machines jitter
# Slow requests come together: a worker that is not scheduled for 200 ms makes twenty slow ones of one event. So the tests
# count this many requests as one observation of latency, or every busy machine would abort good versions.
STALL_REQUESTS = 20
_SLACK_REQUESTS = 10  # requests that were counted on one side of the window's edge and timed on the other
_SLACK_RATIO = 0.05


@dataclass(frozen=True, slots=True)
class _Finding:
    outcome: Outcome
    reason: str


def judge(candidate: ReleaseCounters, live: ReleaseCounters, strategy: Strategy) -> Verdict:
    """PASS if the candidate's errors and latencies are no worse than live's, as far as the strategy tolerates.

    Errors are compared by Fisher's exact test, one-sided, together with the strategy's absolute increase: both must
    say so. Slow requests are counted above `max_slow_ratio` times live's p95 (at the resolution of the buckets), and
    tested against 5% (exact binomial) and against live's own (Fisher), stalls counted as one. FAIL needs no minimum of samples, PASS does.

    Returns:
        ERROR if the counters contradict themselves or each other; FAIL; INCONCLUSIVE with what is missing; or PASS.
        Every reason carries the numbers that decided.
    """
    problems = [*_problems("candidate", candidate), *_problems("live", live), *_mismatch(candidate, live)]
    if problems:
        return Verdict(Outcome.ERROR, tuple(problems))
    findings = [_errors(candidate, live, strategy), _slowness(candidate, live, strategy), *_missing(candidate, live, strategy)]
    for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        reasons = tuple(finding.reason for finding in findings if finding.outcome is outcome)
        if reasons:
            return Verdict(outcome, reasons)
    return Verdict(Outcome.PASS, tuple(finding.reason for finding in findings))


# --- counters that can be trusted


def _problems(side: str, counters: ReleaseCounters) -> Iterator[str]:
    requests, errors, buckets = counters.num_requests, counters.num_errors, counters.latency_buckets
    if not 0 <= errors <= requests:
        yield f"{side} counts {errors} errors of {requests} requests"
        return
    values = [buckets[bound] for bound in sorted(buckets)]
    if any(value < 0 for value in values) or values != sorted(values):
        yield f"{side}'s latency buckets do not rise ({values})"
    elif buckets and max(buckets) != inf:
        yield f"{side}'s latency buckets end at {max(buckets):g} ms, not at infinity"
    else:
        timed, slack = _num_timed(counters), _SLACK_REQUESTS + _SLACK_RATIO * requests
        if not requests - errors - slack <= timed <= requests + slack:
            yield f"{side} has latencies of {timed} requests, but counts {requests} requests with {errors} errors"


def _mismatch(candidate: ReleaseCounters, live: ReleaseCounters) -> Iterator[str]:
    mine, theirs = set(candidate.latency_buckets), set(live.latency_buckets)
    if mine and theirs and mine != theirs:
        yield f"candidate and live have different latency bounds ({', '.join(f'{bound:g}' for bound in sorted(mine ^ theirs))} ms)"


def _num_timed(counters: ReleaseCounters) -> int:
    return counters.latency_buckets.get(inf, 0)


# --- enough of them


def _missing(candidate: ReleaseCounters, live: ReleaseCounters, strategy: Strategy) -> Iterator[_Finding]:
    for side, counters in (("candidate", candidate), ("live", live)):
        for what, count in (("requests", counters.num_requests), ("latencies", _num_timed(counters))):
            if count < strategy.min_samples:
                yield _Finding(Outcome.INCONCLUSIVE, f"{side} has {count} {what} < {strategy.min_samples}")
                break


# --- errors


def _errors(candidate: ReleaseCounters, live: ReleaseCounters, strategy: Strategy) -> _Finding:
    n, failed = candidate.num_requests, candidate.num_errors
    if not n:
        return _Finding(Outcome.INCONCLUSIVE, "error ratio unknown over 0 requests")
    ratio, limit = failed / n, strategy.max_error_ratio_increase
    if not live.num_requests:
        p = _binomial(failed, n, 0.5)  # with nothing to compare with, only a clear majority of failures says anything
        text = f"error ratio {ratio:.4g} over {n} requests, live had none (p {p:.2g})"
        return _Finding(Outcome.FAIL if p < LEVEL else Outcome.INCONCLUSIVE, text)
    live_ratio = live.num_errors / live.num_requests
    counts = f"{failed} of {n} requests, live {live_ratio:.4g} over {live.num_requests}"
    if ratio - live_ratio > limit:
        p = _fisher(failed, n, live.num_errors, live.num_requests)
        outcome = Outcome.FAIL if p < LEVEL else Outcome.INCONCLUSIVE
        chance = "" if outcome is Outcome.FAIL else "; may be chance, more requests are needed"
        return _Finding(outcome, f"error ratio {ratio:.4g} > {live_ratio + limit:.4g} over {counts} (p {p:.2g}{chance})")
    if ratio > 0.5:
        return _Finding(Outcome.INCONCLUSIVE, f"error ratio {ratio:.4g} over {counts}: most requests fail on both sides")
    return _Finding(Outcome.PASS, f"error ratio {ratio:.4g} <= {live_ratio + limit:.4g} over {counts}")


# --- latency


def _slowness(candidate: ReleaseCounters, live: ReleaseCounters, strategy: Strategy) -> _Finding:
    n, live_n = _num_timed(candidate), _num_timed(live)
    if not n or not live_n:
        return _Finding(Outcome.INCONCLUSIVE, f"latency unknown over {n} requests, live {live_n}")
    p95 = _quantile_bound(live.latency_buckets, 1 - SLOW_SHARE)
    limit = _next_bound(live.latency_buckets, max(SLOW_FLOOR_MS, strategy.max_slow_ratio * p95))
    if limit == inf:
        return _Finding(Outcome.INCONCLUSIVE, f"live's p95 of {p95:g} ms is too near the highest latency bound to be compared with")
    slow, live_slow = n - candidate.latency_buckets[limit], live_n - live.latency_buckets[limit]
    share = slow / n
    counts = f"{slow} of {n} slower than {limit:g} ms, live {live_slow} of {live_n}, live's p95 {p95:g} ms"
    if share <= SLOW_SHARE:
        return _Finding(Outcome.PASS, f"slow ratio {share:.4g} <= {SLOW_SHARE:g} ({counts})")
    events, num_observed, live_events, live_observed = (count // STALL_REQUESTS for count in (slow, n, live_slow, live_n))
    p = max(_binomial(events, num_observed, SLOW_SHARE), _fisher(events, num_observed, live_events, live_observed))
    outcome = Outcome.FAIL if p < LEVEL else Outcome.INCONCLUSIVE
    chance = "" if outcome is Outcome.FAIL else "; may be chance, more requests are needed"
    return _Finding(outcome, f"slow ratio {share:.4g} > {SLOW_SHARE:g} ({counts}, p {p:.2g}{chance})")


def _quantile_bound(buckets: Mapping[float, int], quantile: float) -> float:
    """The lowest bound that at least that share of the requests is at or below."""
    return min(bound for bound, count in buckets.items() if count >= quantile * buckets[inf])


def _next_bound(buckets: Mapping[float, int], value: float) -> float:
    return min(bound for bound in buckets if bound >= value)


# --- tests of significance


def _fisher(hits: int, n: int, live_hits: int, live_n: int) -> float:
    """One-sided p of Fisher's exact test: how likely at least `hits` are if both sides are alike.

    The hypergeometric tail itself: `scipy.stats.fisher_exact` computes the same after many checks.
    """
    from scipy.stats import hypergeom  # type: ignore[import-untyped]  # noqa: PLC0415  a second to import, and only the controller judges

    return float(hypergeom.sf(hits - 1, n + live_n, hits + live_hits, n))


def _binomial(hits: int, n: int, share: float) -> float:
    """One-sided p of the exact binomial test: how likely at least `hits` are at that share."""
    from scipy.stats import binom  # noqa: PLC0415  as above

    return float(binom.sf(hits - 1, n, share))
