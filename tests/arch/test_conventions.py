"""Conventions of the repository, as tests."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("registry", "training", "serving", "monitoring", "modelway")
BIN = Path(sys.executable).parent
MAX_LINES = 500


def run(*argv: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in argv], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def make_targets() -> dict[str, str | None]:
    """Target -> what `make help` says about it, of every target that has no path in its name."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    found = [re.match(r"([a-z][a-z-]*):(?!=)(?:.*?## (.+))?", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def python_files() -> list[Path]:
    return [path for folder in (*PACKAGES, "scripts", "tests") for path in (ROOT / folder).rglob("*.py")]


def test_the_version_is_the_newest_of_the_changelog() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == PROJECT["project"]["version"]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    num_lines = len(path.read_text().splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: split it by idea"


def test_no_file_is_named_after_nothing() -> None:
    empty_words = {"utils", "util", "helper", "helpers", "common", "misc", "manager", "managers"}
    assert [path for path in python_files() if empty_words & set(path.stem.split("_"))] == []


def test_test_files_have_unique_names() -> None:
    """pytest imports them by their bare name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_imports_go_in_one_direction() -> None:
    done = run(BIN / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["cli_docs.py", "settings_docs.py"])
def test_generated_documents_are_up_to_date(script: str) -> None:
    done = run(sys.executable, ROOT / "scripts" / script, "--check")
    assert done.returncode == 0, done.stderr


def test_every_make_target_is_explained_and_phony() -> None:
    targets = make_targets()
    assert {"help", "setup", "demo", "up", "down", "test", "lint", "docs", "clean"} <= set(targets)
    assert [name for name, text in targets.items() if not text] == []
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(targets)
    done = run("make", "--no-print-directory")  # `make test` runs this as a make within a make
    assert done.returncode == 0
    assert [line.split()[1] for line in done.stdout.splitlines()] == list(targets)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_documents_name_only_make_targets_that_exist(document: str) -> None:
    named = set(re.findall(r"(?:^|`|say \")\s*make ([a-z][a-z-]*)", (ROOT / document).read_text(), re.MULTILINE))
    assert named, "no make target is named: the pattern of this test is wrong"
    assert named <= set(make_targets())


def test_documents_name_only_files_that_exist() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
        missing = [link for link in links if not (document.parent / link).exists()]
        assert missing == [], document.name


def test_a_python_that_is_too_old_is_refused_in_words(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    done = run("make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "Python 3.9.2 is too old. Install Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()
    done = run("make", "setup", f"PYTHON={tmp_path / 'absent'}", f"VENV={tmp_path / 'venv'}")
    assert "Install Python 3.11 or newer" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    """What costs seconds to import is imported by the commands that need it."""
    heavy = [
        "torch",
        "lightning",
        "mlflow",
        "fastapi",
        "sqlalchemy",
        "numpy",
        "scipy",
        "onnx",
        "onnxruntime",
        "pydantic",
        "uvicorn",
        "httpx",
    ]
    code = (
        "import json, sys\n"
        "from modelway.__main__ import main\n"
        "sys.argv = ['modelway', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print(json.dumps(sorted({set(heavy)} & set(sys.modules))), file=sys.stderr)"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "Usage: modelway" in done.stdout
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed_and_import_nothing_heavy(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    code = f"import sys, {package}; print(sorted({{'torch', 'mlflow', 'numpy', 'sqlalchemy'}} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"


def test_the_command_exists() -> None:
    module, function = PROJECT["project"]["scripts"]["modelway"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    from packaging.requirements import Requirement

    from modelway.doctor import canonical, parse_constraints

    pins = parse_constraints((ROOT / "constraints.txt").read_text())
    extras = PROJECT["project"]["optional-dependencies"]
    for text in (*PROJECT["project"]["dependencies"], *extras["cpu"], *extras["dev"], *extras["postgresql"]):
        requirement = Requirement(text)
        pin = pins.get(canonical(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        if pin.startswith("=="):
            assert "+" not in pin, f"{requirement.name}: a local version can be installed on few machines"
            assert requirement.specifier.contains(pin.removeprefix("=="), prereleases=True), (
                f"{requirement.name}{pin} is not {requirement.specifier}"
            )
    assert not pins["torch"].startswith("=="), "torch's builds have different local versions"
