"""All rivals, by the names that `--servers` knows."""

from __future__ import annotations

import subprocess

from benchmarks.servers import bentoml, fastapi, litserve, mlflow, mlserver, stock_torchserve, triton
from benchmarks.servers.rival import Rival
from benchmarks.setup_environments import python_of

_ALL = (
    triton.RIVAL,
    triton.DELAYED,
    stock_torchserve.RIVAL,
    fastapi.RIVAL,
    mlserver.RIVAL,
    bentoml.RIVAL,
    litserve.RIVAL,
    mlflow.RIVAL,
)
RIVALS: dict[str, Rival] = {rival.name: rival for rival in _ALL}


def installed_version(rival: Rival) -> str:
    """Its package and version, as its own environment has it."""
    code = f"from importlib.metadata import version; print(version({rival.package!r}))"
    done = subprocess.run([str(python_of(rival.environment)), "-c", code], capture_output=True, text=True, check=False)
    return f"{rival.package} {done.stdout.strip()}"
