"""P4 and P6 with the real engines: controller and node are killed while clients ask."""

from __future__ import annotations

import os
import signal

import pytest

from support.live_platform import LivePlatform, wrong_answers
from support.polling import wait_until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("action", ["promotion", "rollback"])
def test_p4_a_killed_controller_changes_nothing_for_clients(platform: LivePlatform, action: str):
    """The enumeration of all crash points runs over fakes (test_controller.py); here the real process is really killed."""
    model = f"killed-during-{action}"
    platform.register(model, 1)
    platform.register(model, 2)
    platform.must("promote", f"{model}/1")
    if action == "rollback":
        platform.must("promote", f"{model}/2", "--strategy", "immediate")
    command = ("rollback", model) if action == "rollback" else ("promote", f"{model}/2", "--strategy", "immediate")
    wanted = 1 if action == "rollback" else 2
    with platform.load(model, 100) as load:
        platform.must(*command, "--no-wait")
        os.kill(platform.child("controller"), signal.SIGKILL)
        wait_until(lambda: platform.ask(model).headers["x-modelway-version"] == str(wanted), timeout_s=60)
        platform.wait_in_sync()
    assert platform.must("history", model)[-1]["status"] == "live"
    assert wrong_answers(load.answers) == []


def test_p6_a_killed_node_serves_the_same_version_again(platform: LivePlatform, model: str):
    platform.must("promote", f"{model}/1")
    os.kill(platform.child("node-0"), signal.SIGKILL)
    wait_until(lambda: platform.ask(model).status_code == 200, timeout_s=60, what="serving after the node was killed")
    assert platform.ask(model).headers["x-modelway-version"] == "1"
    platform.wait_in_sync()
