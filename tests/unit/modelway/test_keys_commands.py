"""`modelway keys`: what it prints where, and what it says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modelway.cli.app import app
from modelway.doctor import gateway_checks
from modelway.settings import Settings
from registry.errors import Conflict, ModelwayError, NotFound, UsageError
from serving.api_keys import KeyFile
from support.certificates import Authority


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELWAY_API_KEYS_FILE", "keys.toml")
    return KeyFile(tmp_path / "keys.toml")


def keys(*arguments: str) -> tuple[str, str]:
    """(stdout, stderr) of a command that succeeds; what it raises otherwise."""
    done = CliRunner().invoke(app, ["keys", *arguments])
    if isinstance(done.exception, ModelwayError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_a_key_is_shown_once_on_stdout_and_kept_as_a_digest(file: KeyFile) -> None:
    out, err = keys("add", "scanner", "--requests-per-s", "20", "--model", "digits", "--json")
    word = json.loads(out)["key"]
    assert "cannot be shown again" in err
    assert word not in err
    assert word not in file.path.read_text()
    out, _ = keys("list", "--json")
    assert json.loads(out) == [{"name": "scanner", "requests per s": 20, "burst": 20, "models": "digits"}]
    assert word not in out


def test_a_removed_key_is_gone(file: KeyFile) -> None:
    keys("add", "a")
    keys("remove", "a")
    assert file.read() == ()
    assert "nobody can ask" in keys("list")[1]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("add", "Scanner"), UsageError, "invalid name of an API key"),
        (("add", "b", "--burst", "3"), UsageError, "a burst needs a rate"),
        (("add", "b", "--requests-per-s", "nan"), UsageError, "invalid requests_per_s"),
        (("add", "b", "--model", "../x"), UsageError, "invalid model name"),
        (("add", "a"), Conflict, "already"),
        (("remove", "b"), NotFound, "no such API key"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(
    file: KeyFile, arguments: tuple[str, ...], error: type[ModelwayError], says: str
) -> None:
    keys("add", "a")
    before = file.path.read_bytes()
    with pytest.raises(error, match=says):
        keys(*arguments)
    assert file.path.read_bytes() == before


def test_without_a_file_set_it_says_how_to_set_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELWAY_API_KEYS_FILE", raising=False)
    with pytest.raises(UsageError, match="MODELWAY_API_KEYS_FILE"):
        keys("add", "a")


def test_the_doctor_looks_at_certificate_and_keys(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue(ends_in_days=30)
    settings = Settings(
        home=tmp_path / "home", gateway_tls_certificate=pair.certificate, gateway_tls_key=pair.key, api_keys_file=tmp_path / "keys.toml"
    )
    now = datetime.now(UTC)
    certificate, api_keys = gateway_checks(settings, now)
    assert certificate.ok
    assert (api_keys.ok, api_keys.detail) == (False, f"there is no file of API keys ({tmp_path / 'keys.toml'})")
    soon, _ = gateway_checks(settings, now + timedelta(days=20))
    assert (soon.ok, soon.fix.startswith("Renew it")) == (False, True)
    late, _ = gateway_checks(settings, now + timedelta(days=40))
    assert "has expired" in late.detail
    assert gateway_checks(Settings(home=tmp_path), now) == []
