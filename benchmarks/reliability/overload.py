"""P20: at five times what the model can do, goodput stays at 80% or more, refusals are 429 or 503 with Retry-After, recovery is quick."""

from __future__ import annotations

import asyncio
from collections import Counter

from benchmarks.reliability.abuse import body
from benchmarks.reliability.load import Clients, Sample, percentile_ms
from benchmarks.reliability.proof import Proof, Say, Subject
from benchmarks.reliability.raw_http import request

FACTOR = 5
_LEAST_GOODPUT = 0.8
_RECOVERY_S = 10.0
_SATURATING_CLIENTS = 96  # three batches: one runs, and the next is complete when it is done


def run(subject: Subject, duration_s: float, say: Say = lambda _: None) -> Proof:
    """Find what the slow model can do, then offer five times that for `duration_s`, then half of it for as long as recovery may take."""
    data = request("POST", f"/v2/models/{subject.slow_model}/infer", {"x-api-key": subject.key, "content-type": "application/json"}, body())
    before = _saturation(subject, data, duration_s)
    offered = FACTOR * before
    say(f"P20: saturation {before:.0f}/s, offering {offered:.0f}/s")
    overload = asyncio.run(Clients(subject.port, data).run_open(offered, duration_s))
    end = overload[-1].due_at
    after = asyncio.run(Clients(subject.port, data).run_open(before / 2, _RECOVERY_S + 5))
    later = _saturation(subject, data, duration_s)
    saturation = (before + later) / 2
    # The first second fills the queue; what is answered after the end belongs to what was waiting then.
    begin = overload[0].due_at + 1
    good = [sample for sample in overload if sample.status == 200 and begin <= sample.done_at <= end]
    goodput = len(good) / (end - begin)
    refused = [sample for sample in overload if sample.status != 200]
    wrong = [sample for sample in refused if sample.status not in (429, 503) or not sample.retry_after or not sample.has_error]
    late = [sample for sample in after if sample.due_at > end + _RECOVERY_S and (sample.status != 200 or sample.latency_s > 3)]
    problems = []
    if goodput < _LEAST_GOODPUT * saturation:
        problems.append(f"goodput {goodput:.0f}/s is {goodput / saturation:.0%} of the saturation of {saturation:.0f}/s")
    if wrong:
        problems.append(f"{len(wrong)} refusals without Retry-After, error, or one of 429 and 503: {Counter(s.status for s in wrong)}")
    if not refused:
        problems.append("nothing was refused: this was no overload")
    if late:
        problems.append(f"{len(late)} requests failed or were slow {_RECOVERY_S:g} s after the overload")
    figures = {
        "saturation": f"{saturation:.0f} answers/s ({before:.0f} before, {later:.0f} after)",
        "offered": f"{offered:.0f} requests/s for {duration_s:g} s, open loop",
        "goodput": f"{goodput:.0f} answers/s, {goodput / saturation:.0%} of saturation",
        "answers": _statuses(overload),
        "latency of those answered 200": f"p50 {percentile_ms(overload, 50):.0f} ms, p99 {percentile_ms(overload, 99):.0f} ms",
        "last refusal or slow answer": f"{_recovered_after_s(after, end):.1f} s after the end of the overload",
    }
    return Proof(promise="P20", title="Overload", figures=figures, problems=tuple(problems))


def _saturation(subject: Subject, data: bytes, duration_s: float) -> float:
    """Answers per second with as many clients as keep the model busy, and no more than it answers all."""
    samples = asyncio.run(Clients(subject.port, data).run_closed(_SATURATING_CLIENTS, duration_s))
    done = [sample.done_at for sample in samples if sample.status == 200]
    return len(done) / (max(done) - min(sample.due_at for sample in samples))


def _recovered_after_s(after: list[Sample], end: float) -> float:
    bad = [sample.due_at - end for sample in after if sample.status != 200 or sample.latency_s > 3]
    return max([0.0, *bad])


def _statuses(samples: list[Sample]) -> str:
    counted = Counter(sample.status for sample in samples)
    return ", ".join(f"{count} times {status or 'no answer'}" for status, count in sorted(counted.items()))
