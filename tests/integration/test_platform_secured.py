"""The whole platform as in production: TLS, API keys, and its own commands as clients of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from modelway.gateway_access import open_client, open_load
from registry.errors import UsageError
from serving.api_keys import KeyFile, new_key
from support.bundles import expected_logits
from support.certificates import Authority
from support.live_platform import ROWS, LivePlatform, payload, wrong_answers
from support.polling import wait_until

pytestmark = pytest.mark.integration

MODEL = "secured"


class Secured:
    """A platform with TLS and keys, and the word of one key."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "pki")
        pair, self.keys = self.authority.issue(), KeyFile(directory / "api-keys.toml")
        key, self.word = new_key("tester")
        self.keys.add(key)
        files = {"gateway_tls_certificate": pair.certificate, "gateway_tls_key": pair.key, "gateway_ca_file": self.authority.file}
        self.platform = LivePlatform(directory / "home", {**files, "api_keys_file": self.keys.path, "access_log_max_mb": 1})


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    one = Secured(tmp_path_factory.mktemp("secured"))
    one.platform.up()
    try:
        one.platform.register(MODEL, 1)
        one.platform.must("promote", f"{MODEL}/1")
        yield one
    finally:
        one.platform.down()


def test_predict_reaches_the_gateway_with_its_key_and_says_what_is_missing_without(secured: Secured, tmp_path: Path) -> None:
    rows, platform = tmp_path / "rows.npy", secured.platform
    np.save(rows, ROWS[:2])
    refused = platform.run("predict", MODEL, "--input", str(rows))
    assert refused.returncode == 2
    assert "an API key is needed" in refused.stderr
    platform.env["MODELWAY_API_KEY"] = secured.word
    try:
        answer = platform.must("predict", MODEL, "--input", str(rows))
        untrusting = dict(platform.env)
        del platform.env["MODELWAY_GATEWAY_CA_FILE"]
        distrusted = platform.run("predict", MODEL, "--input", str(rows))
        platform.env = untrusting
    finally:
        del platform.env["MODELWAY_API_KEY"]
    np.testing.assert_allclose(answer["outputs"]["logits"], expected_logits(ROWS[:2], weights_seed=1), atol=1e-3)
    assert distrusted.returncode == 1
    assert "certificate verify failed" in distrusted.stderr


def test_status_verify_and_a_promotion_under_load_need_no_more_than_before(secured: Secured) -> None:
    platform = secured.platform
    platform.register(MODEL, 2)
    own = platform.settings.model_copy(update={"api_key": secured.word})
    with open_load(own, f"/v2/models/{MODEL}/infer", [payload(row[None]) for row in ROWS], 50.0) as load:
        platform.must("promote", f"{MODEL}/2", "--strategy", "immediate")
    assert wrong_answers(load.answers) == []
    assert {answer.version for answer in load.answers} >= {"1"}
    wait_until(lambda: platform.run("verify").returncode == 0, timeout_s=60, what="agreement, the alias included")
    assert platform.must("status")["channels"][0]["live"]["version"] == 2


def test_a_key_of_the_command_line_works_and_a_renewed_certificate_is_shown(secured: Secured) -> None:
    platform = secured.platform
    word = platform.must("keys", "add", "newcomer", "--requests-per-s", "100")["key"]
    own = platform.settings.model_copy(update={"api_key": word})
    with open_client(own) as client:

        def works() -> bool:
            try:
                return client.signature(MODEL).inputs[0].name == "input"
            except UsageError:  # HTTP 401, until the gateway has it
                return False

        wait_until(works, what="the new key")
    secured.authority.issue(name="renewed")
    with open_client(own) as client:
        np.testing.assert_allclose(client.infer(MODEL, ROWS), expected_logits(ROWS, weights_seed=2), atol=1e-3)


def test_the_access_log_does_not_fill_the_disk(secured: Secured) -> None:
    """1 MiB is some 2,000 lines; the supervisor looks every ten seconds."""
    platform = secured.platform
    log = platform.settings.logs / "access.jsonl"
    own = platform.settings.model_copy(update={"api_key": secured.word})
    moved = log.with_name("access.jsonl.1")
    path = f"/v2/models/{MODEL}/versions/{'9' * 400}"
    with open_load(own, path, [b"{}"], 200.0):
        wait_until(moved.exists, timeout_s=60, what="the rotation")
    wait_until(lambda: log.exists() and log.stat().st_size > 0, what="a new log")
    assert json.loads(moved.read_text().splitlines()[-1])["status"] == 404


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gateway_tls_certificate": "absent.pem", "gateway_tls_key": "absent.key"}, "cannot read the gateway's TLS certificate"),
        ({"api_keys_file": "absent.toml"}, "there is no file of API keys"),
        ({"cors_allow_origins": "example.org"}, "invalid CORS origin"),
    ],
)
def test_up_says_what_is_wrong_before_anything_starts(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    platform = LivePlatform(tmp_path / "home", dict(settings))
    done = platform.run("up", "--detach")
    assert done.returncode == 2
    assert says in done.stderr
    assert not platform.settings.run_dir.exists() or not list(platform.settings.run_dir.glob("*.json"))
