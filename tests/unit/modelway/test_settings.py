"""Settings: what goes over what, and what an error says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from modelway.settings import (
    SOCKET_NAME_BYTES,
    SOCKET_PATH_BYTES,
    Settings,
    base_url,
    load_settings,
    redacted,
    unknown_variables,
)
from registry.errors import UsageError


@pytest.fixture(autouse=True)
def _bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no variable of the machine that runs the tests."""
    for name in os.environ:
        if name.startswith(("MODELWAY_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_local_and_in_the_working_directory(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.home == tmp_path / ".modelway"
    assert settings.ledger_url == f"sqlite:///{tmp_path}/.modelway/ledger.db"
    assert settings.mlflow_store_url == f"sqlite:///{tmp_path}/.modelway/mlflow.db"
    assert (settings.gateway_url, settings.control_url, settings.mlflow_url) == (
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8085",
        "http://127.0.0.1:5000",
    )
    assert {host for host, _ in settings.listeners().values()} == {"127.0.0.1"}
    assert settings.mlflow_is_embedded
    assert not settings.home.exists(), "reading settings makes nothing"


def test_environment_goes_over_file_over_defaults_and_overrides_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("modelway.toml").write_text("nodes = 2\ngateway_port = 1111\nbatch_size = 8\n")
    monkeypatch.setenv("MODELWAY_GATEWAY_PORT", "2222")
    monkeypatch.setenv("MODELWAY_BATCH_SIZE", "16")
    settings = load_settings(batch_size=4)
    assert (settings.nodes, settings.gateway_port, settings.batch_size, settings.control_port) == (2, 2222, 4, 8085)


def test_the_gateways_url_follows_its_certificate_and_files_are_relative_to_the_file(tmp_path: Path) -> None:
    Path("modelway.toml").write_text('gateway_tls_certificate = "pki/a.pem"\ngateway_tls_key = "pki/a.key"\napi_keys_file = "keys.toml"\n')
    settings = load_settings()
    assert settings.gateway_url == "https://127.0.0.1:8080"
    assert (settings.gateway_tls_certificate, settings.api_keys_file) == (tmp_path / "pki" / "a.pem", tmp_path / "keys.toml")
    assert load_settings(gateway_url="https://models.example.org/").gateway_url == "https://models.example.org"


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(UsageError, match="gateway_tls_certificate and gateway_tls_key need each other"):
        load_settings(gateway_tls_certificate="a.pem")


def test_the_own_key_is_printed_nowhere_and_goes_to_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWAY_API_KEY", "a-secret")
    settings = load_settings()
    assert settings.api_key == "a-secret"
    assert "a-secret" not in repr(settings)
    assert "a-secret" not in "".join(settings.environment().values())
    with pytest.raises(UsageError, match=r"MODELWAY_API_KEY = \*\*\*") as error:
        load_settings(api_key="a secret\n")
    assert "a secret" not in str(error.value)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWAY_TRACKING_URI", "")
    monkeypatch.setenv("MODELWAY_GATEWAY_PORT", "")
    assert load_settings().tracking_uri is None
    assert load_settings().gateway_port == 8080


def test_the_file_may_be_elsewhere_and_its_home_is_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mine.toml").write_text('home = "state"\n')
    monkeypatch.setenv("MODELWAY_CONFIG", "etc/mine.toml")
    assert load_settings().home == tmp_path / "etc" / "state"
    monkeypatch.setenv("MODELWAY_HOME", "state")
    assert load_settings().home == tmp_path / "state"


@pytest.mark.parametrize(
    ("own", "mlflow", "in_file", "expected"),
    [
        ("http://own:1/", "http://mlflow:1", "http://file:1", "http://own:1"),
        (None, "http://mlflow:1", "http://file:1", "http://mlflow:1"),
        (None, None, "http://file:1", "http://file:1"),
    ],
    ids=["own variable", "MLflow's variable", "file"],
)
def test_where_the_tracking_uri_comes_from(
    own: str | None, mlflow: str | None, in_file: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("modelway.toml").write_text(f'tracking_uri = "{in_file}"\n')
    for name, value in (("MODELWAY_TRACKING_URI", own), ("MLFLOW_TRACKING_URI", mlflow)):
        if value is not None:
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.mlflow_url == settings.tracking_uri == expected
    assert not settings.mlflow_is_embedded
    assert "mlflow_port" not in settings.listeners()


@pytest.mark.parametrize(
    ("variables", "file", "message"),
    [
        (
            {"MODELWAY_GATEWAY_PORT": "abc"},
            "",
            r"MODELWAY_GATEWAY_PORT = abc: .*integer.*\. Change or remove it\. It is: port of the gateway\.",
        ),
        ({"MODELWAY_CONTROL_PORT": "65536"}, "", r"MODELWAY_CONTROL_PORT = 65536: .*less than or equal to 65535"),
        ({}, "nodes = 0", r"nodes in modelway\.toml = 0: .*greater than or equal to 1"),
        ({"MODELWAY_NODES": "0"}, "nodes = 3", r"MODELWAY_NODES = 0"),
        ({}, "gatway_port = 1", r"unknown setting \(gatway_port in modelway\.toml\)\. Did you mean gateway_port\?"),
        ({}, "[gateway]\nport = 1", r"unknown setting \(gateway in modelway\.toml\)"),
        ({}, "nodes 3", r"not TOML \(modelway\.toml: .*line 1"),
        ({"MODELWAY_CONFIG": "absent.toml"}, "", r"no such settings file \(absent\.toml\)"),
        ({"MODELWAY_MLFLOW_PORT": "8080"}, "", r"gateway_port and mlflow_port are both 8080"),
        ({"MODELWAY_TRACKING_URI": "mlflow.example"}, "", r"MODELWAY_TRACKING_URI = mlflow\.example: a URL with a scheme is needed"),
        ({"MODELWAY_ACTOR": "x", "MODELWAY_REQUEST_TIMEOUT_S": "nan"}, "", r"MODELWAY_REQUEST_TIMEOUT_S = nan"),
        ({"MODELWAY_DRAIN_GRACE_S": "inf"}, "", r"MODELWAY_DRAIN_GRACE_S = inf"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_an_error_names_key_value_and_what_to_do(
    variables: dict[str, str], file: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file:
        Path("modelway.toml").write_text(file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message) as raised:
        load_settings()
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


def test_listeners_with_different_addresses_may_share_a_port_unless_one_is_the_wildcard() -> None:
    Settings(gateway_host="127.0.0.2", control_port=8080)
    with pytest.raises(ValidationError, match="both 8080"):
        Settings(gateway_host="0.0.0.0", control_port=8080)
    Settings(prometheus_port=8080)
    with pytest.raises(ValidationError, match="both 8080"):
        Settings(prometheus_port=8080, prometheus=True)


def test_a_value_that_is_built_reads_no_environment_and_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWAY_NODES", "7")
    Path("modelway.toml").write_text("nodes = 8")
    settings = Settings()
    assert settings.nodes == 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.nodes = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Settings(node=2)  # type: ignore[call-arg]


def test_passwords_are_neither_shown_nor_put_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWAY_LEDGER_URL", "postgresql://ann:s3cret@db:5432/ledger")
    settings = load_settings()
    assert "s3cret" not in f"{settings!r} {settings}"
    assert "postgresql://ann:***@db:5432/ledger" in repr(settings)
    assert settings.environment()["MODELWAY_LEDGER_URL"].endswith("s3cret@db:5432/ledger")
    monkeypatch.setenv("MODELWAY_LEDGER_URL", "//ann:s3cret@db/ledger")
    with pytest.raises(UsageError) as raised:
        load_settings()
    assert "s3cret" not in str(raised.value)
    assert redacted("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_a_child_loads_the_same_settings_from_the_environment_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        home=Path("elsewhere"), nodes=3, prometheus=True, tracking_uri="http://mlflow:1", request_timeout_s=1.5, actor="ann"
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_every_field_is_described() -> None:
    for key, field in Settings.model_fields.items():
        assert field.description, key
        assert field.description.endswith("."), key


@pytest.mark.parametrize("length", range(30, 120, 5))
def test_socket_paths_fit_whatever_the_length_of_the_home(length: int) -> None:
    settings = Settings(home=Path("/" + "h" * length))
    longest = f"{settings.socket_dir}/{'s' * SOCKET_NAME_BYTES}"
    assert len(os.fsencode(longest)) <= SOCKET_PATH_BYTES < 104
    assert settings.socket_dir == Settings(home=settings.home).socket_dir
    assert settings.socket_dir != Settings(home=Path("/" + "i" * length)).socket_dir


def test_the_socket_directory_does_not_depend_on_tmpdir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(home=Path("/" + "h" * 100))
    before = settings.socket_dir
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert settings.socket_dir == before


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("fd00::1", "http://[fd00::1]:1"),
        ("gateway", "http://gateway:1"),
    ],
)
def test_a_listener_is_reached_at(host: str, url: str) -> None:
    assert base_url(host, 1) == url


def test_misspelt_variables_are_found() -> None:
    found = unknown_variables({"MODELWAY_GATEWAYPORT": "1", "MODELWAY_HOME": "x", "MODELWAY_CONFIG": "y", "PATH": "z"})
    assert found == ("MODELWAY_GATEWAYPORT (Did you mean MODELWAY_GATEWAY_PORT?)",)


def test_importing_settings_imports_nothing_heavy() -> None:
    code = (
        "import sys, modelway.settings; print(*sorted({'torch', 'mlflow', 'sqlalchemy', 'fastapi', 'httpx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.stdout.strip() == ""
