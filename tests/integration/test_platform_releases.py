"""P1, P2 and P3 with the real engines: promotions and rollbacks under load, each answer checked for its version's values."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from modelway.load import Answer
from registry.errors import Unavailable
from registry.mlflow_registry import MlflowRegistry
from support.live_platform import ROWS, LivePlatform, wrong_answers
from support.polling import wait_until

pytestmark = pytest.mark.integration

REPETITIONS = 5


@dataclass(frozen=True)
class Command:
    """A promotion or rollback: when it was given, when it was acknowledged, and the version that serves from then on."""

    given_at: float
    acknowledged_at: float
    version: int


def timed(platform: LivePlatform, *arguments: str, version: int) -> Command:
    given_at = time.monotonic()
    platform.must(*arguments)
    return Command(given_at, time.monotonic(), version)


def late(answers: Sequence[Answer], commands: Sequence[Command]) -> list[str]:
    """Answers of another version to requests that lie between a command's acknowledgement and the next command."""
    ends = [*(command.given_at for command in commands[1:]), float("inf")]
    return [
        f"version {answer.version} {answer.sent_at - command.acknowledged_at:.3f} s after {command.version} was acknowledged"
        for command, end in zip(commands, ends, strict=True)
        for answer in answers
        if command.acknowledged_at < answer.sent_at and answer.done_at < end and answer.version != str(command.version)
    ]


def test_p1_p2_promotions_and_rollbacks_under_load_fail_nothing(platform: LivePlatform, model: str):
    platform.must("promote", f"{model}/1")
    commands: list[Command] = []
    with platform.load(model) as load:
        for _ in range(REPETITIONS):
            commands.append(timed(platform, "promote", f"{model}/2", "--strategy", "immediate", version=2))
            commands.append(timed(platform, "rollback", model, version=1))
    assert wrong_answers(load.answers) == []
    assert len(load.answers) > 100
    assert late(load.answers, commands) == []


def test_a_canary_under_load_goes_live_step_by_step(platform: LivePlatform, model: str):
    platform.must("promote", f"{model}/1")
    with platform.load(model) as load:
        platform.must("promote", f"{model}/2", "--strategy", "canary", "--steps", "10%:2s,50%:2s", "--min-samples", "20")
    assert wrong_answers(load.answers) == []
    assert {answer.version for answer in load.answers} == {"1", "2"}
    record = platform.must("history", model)[-1]
    assert [e["data"]["percent"] for e in record["events"] if e["kind"] == "weighted"] == [10, 50, 100]
    judged = [e["data"]["verdict"] for e in record["events"] if e["kind"] == "judged"]
    assert [verdict["outcome"] for verdict in judged] == ["pass", "pass"]
    assert all(any(char.isdigit() for char in reason) for verdict in judged for reason in verdict["reasons"])


def test_a_canary_that_answers_errors_is_aborted(platform: LivePlatform, model: str):
    platform.register(model, 3, fault="nan-above-1000")  # passes its golden set, and fails on what clients send
    platform.must("promote", f"{model}/1")
    with platform.load(model, rows=ROWS + np.float32(2000)) as load:
        done = platform.run("promote", f"{model}/3", "--strategy", "canary", "--steps", "20%:5s", "--min-samples", "20")
    assert done.returncode == 3
    assert "did not go live: aborted" in done.stderr
    assert "error ratio" in done.stderr
    assert platform.ask(model).headers["x-modelway-version"] == "1"
    assert {answer.version for answer in load.failed} <= {"3"}
    share = sum(answer.version == "3" for answer in load.answers) / len(load.answers)
    assert share < 0.3, "clients saw at most the canary's share"


@pytest.mark.parametrize("fault", ["crash-at-load", "wrong-numbers", "nan", "wrong-shape"])
def test_a_poisoned_version_never_gets_traffic(platform: LivePlatform, fault: str):
    model = f"poisoned-{fault}"
    platform.register(model, 1)
    platform.register(model, 2, fault=fault)
    platform.must("promote", f"{model}/1")
    with platform.load(model, 50) as load:
        done = platform.run("promote", f"{model}/2", "--strategy", "immediate")
    assert done.returncode == 3, done.stderr
    assert wrong_answers(load.answers) == []
    assert {answer.version for answer in load.answers} == {"1"}
    assert "Traceback" not in done.stderr


def test_p3_a_rollback_works_with_mlflow_killed(platform: LivePlatform, model: str):
    platform.must("promote", f"{model}/1")
    platform.must("promote", f"{model}/2", "--strategy", "immediate")
    wait_until(lambda: alias(platform, model) == 2, timeout_s=60, what="the alias at version 2")
    with platform.load(model) as load:
        os.kill(platform.child("mlflow"), signal.SIGKILL)
        platform.must("rollback", model)
    assert wrong_answers(load.answers) == []
    assert platform.ask(model).headers["x-modelway-version"] == "1"
    wait_until(lambda: alias(platform, model) == 1, timeout_s=120, what="the alias following when MLflow is back")


def alias(platform: LivePlatform, model: str) -> int | None:
    """What MLflow itself says; None while it does not answer."""
    try:
        return MlflowRegistry(platform.settings.mlflow_url).aliases(model).get("production")
    except Unavailable:
        return None
