"""The container files, as far as they can be checked without an engine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelway.platform import COMPONENTS
from modelway.settings import Settings, load_settings, unknown_variables

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
COMPILERS = {"gcc", "g++", "cpp", "clang", "cc", "make", "cmake", "build-essential", "gfortran", "rustc", "cargo", "python3-dev"}


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages, each a list of (instruction, arguments), without comments and continuation lines."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[list[tuple[str, str]]] = [[]]
    for line in filter(str.strip, text.splitlines()):
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, arguments.strip()))
    return found[1:]


def arguments(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in stage if name == instruction]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text()))


def own_services() -> dict[str, Any]:
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def docker_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in arguments(stages()[-1], "ENV") for pair in line.split())


@pytest.mark.parametrize(("program", "file"), [("hadolint", "Dockerfile"), ("shellcheck", ".ci/run")])
def test_linters_of_their_own(program: str, file: str) -> None:
    done = subprocess.run([BIN / program, ROOT / file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_a_stage_to_build_in_and_one_to_run() -> None:
    builder, final = stages()
    assert " AS builder" in builder[0][1]
    assert arguments(builder, "ARG")[0] == "VARIANT=cpu"
    assert [value for value in arguments(final, "COPY") if not value.startswith("--from=builder")] == []


def test_the_image_runs_as_an_ordinary_user() -> None:
    (user,) = arguments(stages()[-1], "USER")
    assert user not in ("root", "0")
    # Its numeric id, so that an orchestrator can tell that it is not root; the one of the user that is created.
    assert f"--uid {user} " in " ".join(arguments(stages()[-1], "RUN"))
    assert compose()["services"]["prometheus"]["user"] == f"{user}:{user}"


def test_the_final_stage_installs_no_compiler() -> None:
    commands = " ".join(arguments(stages()[-1], "RUN"))
    installed = [word for part in re.findall(r"apt-get install ([^&]+)", commands) for word in part.split() if not word.startswith("-")]
    assert installed == ["tini"]
    assert not COMPILERS & set(installed)
    assert "pip install" not in commands


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [word for value in arguments(stages()[0], "COPY") for word in value.split()[:-1]]
    assert {"registry", "training", "serving", "monitoring", "modelway", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    assert "*" in ignored, "what is not named, such as .git, .venv and .modelway, does not get into the image"


def test_the_image_starts_the_platform() -> None:
    final = stages()[-1]
    assert arguments(final, "ENTRYPOINT") == ['["tini", "--", "modelway"]']
    assert "modelway" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert arguments(final, "CMD") == ['["up"]']
    assert "/v2/health/live" in arguments(final, "HEALTHCHECK")[0]
    assert arguments(final, "EXPOSE") == [str(Settings().gateway_port)]


def test_variables_of_the_image_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: value for name, value in docker_environment().items() if name.startswith("MODELWAY_")}
    assert environment
    assert unknown_variables(environment) == ()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(load_settings().home) == arguments(stages()[-1], "VOLUME")[0]


def test_each_service_runs_one_component_and_all_are_run() -> None:
    components = []
    for name, service in own_services().items():
        assert service["command"][:2] == ["up", "--component"], name
        (component,) = service["command"][2:]
        components.append(component)
    assert set(components) | {"prometheus"} == set(COMPONENTS)
    assert len(components) == len(set(components))


@pytest.mark.parametrize("name", ["mlflow", "node", "gateway", "controller"])
def test_variables_of_a_service_are_valid_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = docker_environment() | own_services()[name]["environment"]
    ours = {
        key: re.sub(r"\$\{POSTGRES_PASSWORD[^}]*\}", "secret", value) for key, value in environment.items() if key.startswith("MODELWAY_")
    }
    assert unknown_variables(ours) == ()
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    settings = load_settings()
    assert settings.mlflow_is_embedded is (name == "mlflow"), "only one service is the MLflow server; the others are its clients"
    assert {str(settings.home)} == {volume.split(":")[1] for volume in own_services()[name]["volumes"]}


def test_clients_reach_mlflow_by_a_name_that_it_answers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    services = own_services()
    url = services["controller"]["environment"]["MODELWAY_TRACKING_URI"]
    allowed = services["mlflow"]["environment"]["MODELWAY_MLFLOW_ALLOWED_HOSTS"].split(",")
    assert re.fullmatch(r"http://([a-z]+):5000", url)
    assert url.removeprefix("http://").split(":")[0] in set(allowed) & set(services)


def test_no_service_has_a_password_of_its_own_or_a_port_for_everybody() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert re.findall(r"POSTGRES_PASSWORD: (?!\$\{POSTGRES_PASSWORD:\?)", text) == []
    assert re.findall(r"://\w+:(?!\$\{POSTGRES_PASSWORD:\?)[^@\s/]+@", text) == []
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "privileged" not in service
        assert service.get("user") not in ("root", "0")


def test_services_wait_for_services_that_exist() -> None:
    services = compose()["services"]
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other], f"{other} would never be healthy"


def test_the_databases_that_are_named_are_made() -> None:
    script = (ROOT / "deploy" / "postgres-init.sql").read_text()
    used = set(re.findall(r"@postgres:5432/(\w+)", (ROOT / "compose.yaml").read_text()))
    assert used == set(re.findall(r"CREATE DATABASE (\w+);", script)) == {"mlflow", "ledger"}
