"""Code revision and packages, read from the real git and the real environment."""

from __future__ import annotations

import subprocess

import torch

from training import environment


def _git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True, timeout=30)


def test_a_commit_is_clean_until_a_file_changes(tmp_path):
    _git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    _git(tmp_path, "add", "a")
    _git(tmp_path, "commit", "-m", "first")
    commit, dirty = environment.git_state(tmp_path)
    assert len(commit) == 40
    assert not dirty
    (tmp_path / "a").write_text("2")
    assert environment.git_state(tmp_path) == (commit, True)


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert environment.git_state(tmp_path) is None


def test_packages_are_those_installed():
    assert environment.describe()["package.torch"] == torch.__version__
    assert environment.package_versions(("no-such-distribution",)) == {}
    assert any(line.startswith("numpy==") for line in environment.installed_packages())
