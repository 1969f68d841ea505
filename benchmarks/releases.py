"""Promotions and rollbacks under an open-loop load: how long each takes, and what clients saw meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.mlp import MODEL, expected_logits, is_right, payload, rows
from benchmarks.platform_under_test import PlatformUnderTest
from modelway.control import ControlClient, Json
from modelway.load import Answer, OpenLoopLoad
from registry.errors import ModelwayError

REQUESTS_PER_S = 200.0
API, COMMAND_LINE = "control API", "command line"
PROMOTION, WARM, COLD = "promotion, immediate", "rollback, warm", "rollback, cold"
_NUM_ROWS = 32
_WAIT_S = 120.0
_LISTEN_S = 0.5  # so that each acknowledgement is followed by some 100 requests


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One command. Times are those of `time.monotonic`.

    Attributes:
        kind: What it was. Only in a warm rollback did the nodes have the version when the controller took the release up.
        version: What serves from the acknowledgement on.
    """

    kind: str
    via: str
    version: int
    given_at: float
    acknowledged_at: float

    @property
    def seconds(self) -> float:
        """From the command to its acknowledgement."""
        return self.acknowledged_at - self.given_at


@dataclass(frozen=True, kw_only=True)
class Row:
    """All trials of one kind that were given one way."""

    kind: str
    via: str
    num_trials: int
    median_s: float
    worst_s: float
    num_answers_after: int
    num_wrong_version: int


@dataclass(frozen=True, kw_only=True)
class Releases:
    """All trials of one run, and every answer that clients got meanwhile."""

    trials: Sequence[Trial]
    answers: Sequence[Answer]

    @property
    def failures(self) -> list[str]:
        """Each answer that is no answer, or holds other numbers than those of the version that it names."""
        inputs = rows(_NUM_ROWS)
        expected = {version: expected_logits(inputs, version) for version in {trial.version for trial in self.trials} | {1, 2, 3}}
        return [problem for answer in self.answers if (problem := _problem(answer, expected))]

    @property
    def rows(self) -> list[Row]:
        """The table."""
        groups: dict[tuple[str, str], list[int]] = {}
        for index, trial in enumerate(self.trials):
            groups.setdefault((trial.kind, trial.via), []).append(index)
        return [self._row(kind, via, indexes) for (kind, via), indexes in sorted(groups.items())]

    def _row(self, kind: str, via: str, indexes: Sequence[int]) -> Row:
        trials = [self.trials[index] for index in indexes]
        after = [(index, answer) for index in indexes for answer in self._answers_after(index)]
        return Row(
            kind=kind,
            via=via,
            num_trials=len(trials),
            median_s=statistics.median(trial.seconds for trial in trials),
            worst_s=max(trial.seconds for trial in trials),
            num_answers_after=len(after),
            num_wrong_version=sum(self._is_wrong_version(index, answer) for index, answer in after),
        )

    def _answers_after(self, index: int) -> list[Answer]:
        """Good answers to requests that were sent between a trial's acknowledgement and the next command."""
        begin = self.trials[index].acknowledged_at
        end = self.trials[index + 1].given_at if index + 1 < len(self.trials) else float("inf")
        return [answer for answer in self.answers if begin < answer.sent_at < end and answer.status == 200]

    def _is_wrong_version(self, index: int, answer: Answer) -> bool:
        """Whether neither this trial nor one that was given before the answer was there explains its version."""
        later = (trial.version for trial in self.trials[index + 1 :] if trial.given_at < answer.done_at)
        return answer.version not in {str(version) for version in (self.trials[index].version, *later)}

    @property
    def wrong_versions(self) -> list[str]:
        """Each answer of the wrong version after an acknowledgement, in words."""
        return [
            _wrong_version(trial, answer)
            for index, trial in enumerate(self.trials)
            for answer in self._answers_after(index)
            if self._is_wrong_version(index, answer)
        ]


def _wrong_version(trial: Trial, answer: Answer) -> str:
    sent_ms, answered_ms = ((at - trial.acknowledged_at) * 1000 for at in (answer.sent_at, answer.done_at))
    return (
        f"version {answer.version} instead of {trial.version}, to a request sent {sent_ms:.0f} ms and answered {answered_ms:.0f} ms "
        f"after the acknowledgement of a {trial.kind} by {trial.via}"
    )


def _problem(answer: Answer, expected: dict[int, Any]) -> str:
    if answer.status != 200:
        return f"status {answer.status}: {str(answer.body)[:200]}"
    if not answer.version.isdigit() or not is_right(answer.body, expected[int(answer.version)][answer.item]):
        return f"not the numbers of version {answer.version}: {str(answer.body)[:200]}"
    return ""


def run(platform: PlatformUnderTest, *, num_warm: int, num_cold: int, say: Callable[[str], None]) -> Releases:
    """Versions 1 to 3 are registered, and 1 is live."""
    trials: list[Trial] = []
    payloads = [payload(row[None]) for row in rows(_NUM_ROWS)]
    url = f"{platform.settings.gateway_url}/v2/models/{MODEL}/infer"
    with platform.control() as control, OpenLoopLoad(url=url, payloads=payloads, requests_per_s=REQUESTS_PER_S) as load:
        runner = _Runner(platform, control, trials, say)
        for _ in range(num_warm):
            for via in (API, COMMAND_LINE):
                runner.promote(2, via)
                runner.roll_back(WARM, 1, via)
        runner.promote(3, API)  # the node keeps two versions, so that from now on there is one to go back to that it has not
        for _ in range(num_cold):
            for via in (API, COMMAND_LINE):
                version = platform.wait_unloaded()
                runner.roll_back(COLD, version, via, "--to", str(version))
    return Releases(trials=trials, answers=load.answers)


class _Runner:
    """Gives commands and notes when they were given and acknowledged."""

    def __init__(self, platform: PlatformUnderTest, control: ControlClient, trials: list[Trial], say: Callable[[str], None]) -> None:
        self._platform, self._control, self._trials, self._say = platform, control, trials, say

    def promote(self, version: int, via: str) -> None:
        """Promote at once, a version that the node does not hold any more."""
        self._platform.wait_unloaded(version)
        body = {"version": version, "strategy": "immediate", "actor": "benchmark"}
        argv = ("promote", f"{MODEL}/{version}", "--strategy", "immediate")
        self._give(PROMOTION, version, via, lambda: self._control.promote(MODEL, body), argv)

    def roll_back(self, kind: str, version: int, via: str, *options: str) -> None:
        """Go back, to a named version if the options name one."""
        body: Json = {"actor": "benchmark"} | ({"to": version} if options else {})
        self._give(kind, version, via, lambda: self._control.rollback(MODEL, body), ("rollback", MODEL, *options))

    def _give(self, kind: str, version: int, via: str, call: Callable[[], Json], argv: Sequence[str]) -> None:
        given_at = time.monotonic()
        if via == API:
            self._control.wait(call()["release"], _WAIT_S)
        else:
            self._platform.command(*argv)
        acknowledged_at = time.monotonic()
        release = self._control.releases(MODEL)[-1]
        if (release["version"], release["status"]) != (version, "live"):
            raise ModelwayError(f"{kind} to {MODEL}/{version} did not go live: {release}", f"Look at {self._platform.settings.logs}.")
        warm = any(event["kind"] == "started" and bool(event["data"].get("warm")) for event in release["events"])
        if warm != (kind == WARM):
            raise ModelwayError(
                f"{kind} to {MODEL}/{version} was {'warm' if warm else 'cold'}", "The measurement would not be what it says."
            )
        trial = Trial(kind=kind, via=via, version=version, given_at=given_at, acknowledged_at=acknowledged_at)
        self._trials.append(trial)
        self._say(f"  {kind} to version {version}, {via}: {trial.seconds:.3f} s")
        time.sleep(_LISTEN_S)
