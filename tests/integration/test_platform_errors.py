"""Errors as a new user meets them: one line that says what, which value, and what to do next; the right exit code."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.live_platform import LivePlatform, wrong_answers
from support.polling import wait_until

pytestmark = pytest.mark.integration


def refusal(platform: LivePlatform, *arguments: str, code: int) -> str:
    """The one line on stderr of a command that must end with that exit code."""
    done = platform.run(*arguments)
    assert done.returncode == code, f"exit {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.fixture
def nowhere(tmp_home: Path) -> LivePlatform:
    """A home in which nothing runs."""
    return LivePlatform(tmp_home)


def test_an_unknown_recipe_lists_the_ones_there_are(nowhere: LivePlatform):
    assert "digits" in refusal(nowhere, "train", "no-such-recipe", code=1)


def test_a_wrong_key_of_a_recipe_names_the_right_one(nowhere: LivePlatform):
    error = refusal(nowhere, "train", "digits", "--set", "trainer.max_epoch=3", code=2)
    assert "trainer.max_epoch" in error
    assert "max_epochs" in error


@pytest.mark.parametrize("command", [("promote", "digits/1"), ("rollback", "digits"), ("status",), ("verify",)])
def test_with_the_platform_down_the_command_to_start_it_is_named(nowhere: LivePlatform, command: tuple[str, ...]):
    assert "modelway up" in refusal(nowhere, *command, code=1)


def test_history_without_a_ledger_says_so(nowhere: LivePlatform):
    assert "modelway up" in refusal(nowhere, "history", "digits", code=1)


@pytest.mark.parametrize("text", ["digits", "digits/", "digits/one", "digits@production", "di gits/1", "digits/0"])
def test_what_is_no_version_is_a_usage_error(nowhere: LivePlatform, text: str):
    refusal(nowhere, "promote", text, code=2)


def test_a_port_in_use_is_named_with_its_owner(nowhere: LivePlatform):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", nowhere.settings.gateway_port))
        taken.listen()
        error = refusal(nowhere, "up", "--detach", code=1)
    assert str(nowhere.settings.gateway_port) in error
    assert "pid" in error
    assert "MODELWAY_GATEWAY_PORT" in error


def test_an_unwritable_home_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    platform = LivePlatform(tmp_path / "file" / "home")
    platform.home = tmp_path / "home"
    error = refusal(platform, "up", "--detach", code=2)
    assert str(tmp_path / "file") in error
    assert "MODELWAY_HOME" in error


def test_an_unreachable_mlflow_is_named(nowhere: LivePlatform):
    nowhere.env["MODELWAY_TRACKING_URI"] = "http://127.0.0.1:9"
    assert "http://127.0.0.1:9" in refusal(nowhere, "train", "digits", "--set", "trainer.max_epochs=1", code=1)


def test_unknown_models_and_versions_name_those_that_exist(platform: LivePlatform):
    platform.register("known", 1)
    assert "known" in refusal(platform, "promote", "unknown/1", code=1)
    assert "versions are 1" in refusal(platform, "promote", "known/9", code=1)
    assert "onnx-fp32" in refusal(platform, "promote", "known/1", "--variant", "onnx-fp64", code=1)
    assert "never released" in refusal(platform, "rollback", "known", code=1)
    assert "never released" in refusal(platform, "history", "known", code=1)


def test_an_unexported_version_names_the_command(platform: LivePlatform):
    platform.register("unexported", 1, exported=False)
    assert "modelway export unexported/1" in refusal(platform, "promote", "unexported/1", code=3)


def test_gates_and_conflicts_have_their_exit_codes(platform: LivePlatform):
    platform.register("gated", 1)
    platform.register("gated", 2, certificate_passes=False)
    platform.must("promote", "gated/1")
    assert "certificate" in refusal(platform, "promote", "gated/2", "--variant", "onnx-fp32", code=3)
    assert "no earlier live release" in refusal(platform, "rollback", "gated", code=3)
    platform.register("gated", 3)
    platform.must("promote", "gated/3", "--strategy", "canary", "--steps", "5%:600s", "--no-wait")
    platform.register("gated", 4)
    assert "on its way" in refusal(platform, "promote", "gated/4", code=5)
    platform.must("rollback", "gated")


def test_waiting_too_short_times_out_and_the_release_goes_on(platform: LivePlatform):
    platform.register("patient", 1)
    platform.register("patient", 2)
    platform.must("promote", "patient/1")
    assert "It goes on" in refusal(platform, "promote", "patient/2", "--strategy", "canary", "--steps", "5%:600s", "--timeout", "1", code=4)
    platform.must("rollback", "patient")


def test_promoting_what_is_live_says_already_and_succeeds(platform: LivePlatform):
    platform.register("already", 1)
    platform.must("promote", "already/1")
    done = platform.run("promote", "already/1")
    assert done.returncode == 0
    assert "already live" in done.stderr


def test_a_dry_run_prints_the_steps_and_changes_nothing(platform: LivePlatform):
    platform.register("dry", 1)
    steps = platform.must("promote", "dry/1", "--dry-run")["steps"]
    assert any("ask the golden set" in step for step in steps)
    assert steps[-1].endswith("live")
    assert "never released" in refusal(platform, "history", "dry", code=1)


def test_two_homes_side_by_side_drain_under_load_and_leave_nothing_behind(platform: LivePlatform, nowhere: LivePlatform):
    import psutil

    before = {process.pid for process in psutil.process_iter()}
    nowhere.up()
    nowhere.register("here", 1)
    nowhere.must("promote", "here/1")
    assert nowhere.ask("here").status_code == 200
    assert platform.ask("here").status_code == 404
    with nowhere.load("here", 100) as load:
        nowhere.down()
    unanswered = [answer for answer in load.failed if "ConnectError" not in str(answer.body)]
    assert unanswered == [], "P14: what was accepted is answered; what comes later finds no listener"
    assert wrong_answers([answer for answer in load.answers if answer.status == 200]) == []
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and str(nowhere.home) in " ".join(p.info["cmdline"] or [])]
    wait_until(lambda: not [p for p in left if p.is_running()], timeout_s=10, what="every process gone")
    sockets = [path for path in nowhere.settings.socket_dir.rglob("*") if path.is_socket()] if nowhere.settings.socket_dir.is_dir() else []
    assert sockets == []
    assert "already down" in nowhere.run("down").stderr
    assert [release["status"] for release in nowhere.must("history", "here")] == ["live"], "readable from the ledger itself"
