"""Where a run was made: code revision, Python, packages, machine. Read here and nowhere else in training."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_NAMED_PACKAGES = ("torch", "lightning", "numpy", "mlflow", "onnx", "onnxruntime", "onnxscript", "modelway")
_GIT_TIMEOUT_S = 10


def git_state(directory: Path) -> tuple[str, bool] | None:
    """Commit and whether tracked or new files differ from it; None outside a repository, or without git."""
    commit = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain")
    return None if commit is None or status is None else (commit, bool(status))


def package_versions(names: tuple[str, ...] = _NAMED_PACKAGES) -> dict[str, str]:
    """Versions of the packages that decide what a model computes; those that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def installed_packages() -> list[str]:
    """Every installed distribution as `name==version`, sorted."""
    return sorted({f"{d.name}=={d.version}" for d in metadata.distributions() if d.name}, key=str.lower)


def describe() -> dict[str, str]:
    """Python, platform and named packages, as parameters of a run."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        **{f"package.{name}": version for name, version in package_versions().items()},
    }


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
