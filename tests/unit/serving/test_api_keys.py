"""API keys: the word that a client sends, the file, and a view that follows it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from registry.errors import Conflict, NotFound, UsageError
from serving.api_keys import MAX_KEYS, ApiKey, KeyFile, new_key, parse, table_text, without_table

DIGEST = base64.b64encode(bytes(20)).decode()


@pytest.mark.parametrize("name", ["a", "ab", "abc", "scanner-1", "x" * 63])
def test_a_word_is_letters_and_digits_and_holds_name_and_secret(name: str) -> None:
    key, word = new_key(name)
    assert re.fullmatch(r"[A-Za-z0-9]+", word), "base64 padding or symbols would have to be quoted somewhere"
    sent_name, _, secret = base64.b64decode(word).decode().partition(":")
    assert sent_name == name
    assert len(secret) >= 43  # 256 bits of 62 characters
    assert base64.b64decode(key.sha1) == hashlib.sha1(secret.encode()).digest()
    assert secret not in table_text(key)


def test_two_keys_of_one_name_differ() -> None:
    assert new_key("a")[1] != new_key("a")[1]


@pytest.mark.parametrize(("rate", "burst"), [(None, 1), (0.5, 1), (1, 1), (2.5, 3), (100, 100)])
def test_a_burst_is_what_one_second_allows(rate: float | None, burst: int) -> None:
    assert new_key("a", requests_per_s=rate)[0].burst == burst


def test_a_key_survives_its_table() -> None:
    keys = (ApiKey(name="a", sha1=DIGEST), ApiKey(name="b", sha1=DIGEST, requests_per_s=2.5, burst=7, models=("digits", "x.y")))
    assert parse("\n".join(map(table_text, keys)), "f") == keys


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[keys.a", "are not TOML"),
        ("[key.a]\nsha1 = 'x'", "something that is no key"),
        ("keys = 3", "something that is no key"),
        ("[keys.A]\nsha1 = 'x'", r"invalid name of an API key \('A'\)"),
        ("[keys.a]\n", "not a table with sha1"),
        ("[keys.a]\nsha1 = 3", "not a table with sha1"),
        ("[keys.a]\nsha1 = 'x'", "digest of the API key a is no base64"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nrate = 3", "only known fields"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nrequests_per_s = '3'", "requests_per_s of the API key a is not a number"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nrequests_per_s = true", "requests_per_s of the API key a is not a number"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nrequests_per_s = 0", r"invalid requests_per_s of the API key a \(0\)"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nrequests_per_s = nan", r"invalid requests_per_s of the API key a \(nan\)"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nrequests_per_s = 1\nburst = 0", r"invalid burst of the API key a \(0\)"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nburst = 1.5", "burst of the API key a is not a whole number"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nmodels = 'digits'", "models of the API key a is not a list"),
        (f"[keys.a]\nsha1 = '{DIGEST}'\nmodels = ['../x']", "invalid model name"),
        ("\n".join(f"[keys.k{i}]" for i in range(MAX_KEYS + 1)), f"too many API keys .*{MAX_KEYS + 1}"),
    ],
    ids=lambda value: value[:30].replace("\n", " "),
)
def test_what_is_no_key_is_named_without_its_digest(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        parse(text, "api-keys.toml")
    assert DIGEST not in str(error.value)


def test_the_file_is_made_for_this_user_only_and_keeps_what_the_operator_wrote(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys" / "api-keys.toml")
    file.add(new_key("a", requests_per_s=5)[0])
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.path.write_text(f"{file.path.read_text()}\n# the night shift\n[ keys . \"b\" ] # theirs\nsha1 = '{DIGEST}'\n")
    file.add(new_key("c", models=("digits",))[0])
    assert [key.name for key in file.read()] == ["a", "b", "c"]
    file.remove("a")
    file.remove("b")
    assert [key.name for key in file.read()] == ["c"]
    assert "# the night shift" in file.path.read_text()
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_changes_that_cannot_be_made_say_why(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "f")
    with pytest.raises(UsageError, match="there is no file of API keys"):
        file.read()
    file.add(new_key("a")[0])
    with pytest.raises(Conflict, match=r"already \(a\)"):
        file.add(new_key("a")[0])
    with pytest.raises(NotFound, match=r"no such API key \(b\). There are: a"):
        file.remove("b")
    file.path.write_text(f"keys.a.sha1 = '{DIGEST}'\n")
    with pytest.raises(UsageError, match="not a table of its own"):
        file.remove("a")


def test_removing_takes_one_table_only() -> None:
    text = "# head\n[keys.a]\nsha1 = 'x'\n[keys.ab]\nsha1 = 'y'\n"
    assert without_table(text, "a") == "# head\n[keys.ab]\nsha1 = 'y'\n"
    assert without_table(text, "b") == text


@pytest.mark.parametrize(
    ("mode", "accepted"), [(0o600, True), (0o640, True), (0o400, True), (0o604, False), (0o644, False), (0o660, False)]
)
def test_a_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int, accepted: bool) -> None:
    file = KeyFile(tmp_path / "f")
    file.add(new_key("a")[0])
    file.path.chmod(mode)
    if accepted:
        assert len(file.read()) == 1
    else:
        with pytest.raises(UsageError, match=rf"open to others .*mode {mode:04o}.*chmod 600"):
            file.read()


def test_a_file_that_is_broken_meanwhile_leaves_the_last_good_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, follower = KeyFile(tmp_path / "f"), KeyFile(tmp_path / "f")
    with pytest.raises(UsageError):
        follower.current()
    file.add(new_key("a")[0])
    assert [key.name for key in follower.current()] == ["a"]
    good = file.path.read_text()
    for broken in (lambda: file.path.write_text("[keys"), lambda: file.path.chmod(0o644), file.path.unlink):
        broken()
        caplog.clear()
        assert [key.name for key in follower.current()] == ["a"]
        assert [key.name for key in follower.current()] == ["a"]
        assert len(caplog.records) == 1, "said once, not at every look"
        assert "stay as they were" in caplog.text
        file.path.write_text(good)
        file.path.chmod(0o600)
        assert [key.name for key in follower.current()] == ["a"]
    file.add(new_key("b")[0])
    assert [key.name for key in follower.current()] == ["a", "b"]
