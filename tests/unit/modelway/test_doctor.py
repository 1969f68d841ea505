"""What the doctor concludes from facts, and that it runs on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelway import doctor
from modelway.doctor import Check
from modelway.ports_in_use import PortState
from modelway.settings import Settings
from registry.errors import Unavailable
from support.ports import free_port

CPU = {"onnxruntime": "1.32.0"}
GPU = {"onnxruntime-gpu": "1.31.1"}


def test_python_must_be_new_enough() -> None:
    assert doctor.python_check((3, 11, 0)).ok
    assert doctor.python_check((3, 14, 1)).ok
    assert not doctor.python_check((3, 10, 9)).ok


@pytest.mark.parametrize(
    ("installed", "ok"), [(CPU, True), (GPU, True), ({}, False), (CPU | GPU, False)], ids=["cpu", "gpu", "none", "both"]
)
def test_exactly_one_onnxruntime(installed: dict[str, str], ok: bool) -> None:
    check = doctor.runtime_check(installed)
    assert check.ok is ok
    assert bool(check.fix) is not ok


@pytest.mark.parametrize(
    ("installed", "driver", "ok", "fix"),
    [
        (CPU, None, True, ""),
        (GPU, None, False, "Install the NVIDIA driver"),
        (CPU, "580.65.06", True, "Models run on the CPU"),
        (GPU, "580.65.06", True, ""),
        (GPU, "570.10", False, "Install driver 580"),
    ],
    ids=["cpu only", "gpu build without driver", "driver with cpu build", "both", "old driver"],
)
def test_driver_and_build_must_fit(installed: dict[str, str], driver: str | None, ok: bool, fix: str) -> None:
    check = doctor.gpu_check(installed, driver)
    assert check.ok is ok
    assert check.fix.startswith(fix)
    assert bool(check.fix) is bool(fix)


def test_disk() -> None:
    assert doctor.disk_check(Path("/"), 3 << 30) == Check(name="disk", ok=True, detail="3.0 GiB free at /")
    assert not doctor.disk_check(Path("/"), 1 << 30).ok


def test_versions_must_be_in_the_declared_ranges() -> None:
    declared = ["alpha>=1,<2", "Beta_Two>=1; python_version >= '3'", "gamma>=9; extra == 'dev'"]
    good = {"alpha": "1.5", "beta-two": "3"}
    assert doctor.versions_check(declared, good, {}).ok
    assert doctor.versions_check(declared, {**good, "alpha": "2.0"}, {}).detail == "alpha 2.0 is not <2,>=1"
    assert doctor.versions_check(declared, {"alpha": "1.5"}, {}).detail == "Beta_Two is missing"


def test_versions_that_were_not_tested_are_said_but_allowed() -> None:
    check = doctor.versions_check(["alpha>=1"], {"alpha": "1.5", "delta": "1"}, {"alpha": "==1.4", "absent": "==1", "delta": "==1"})
    assert check.ok
    assert check.detail.endswith(": alpha 1.5")
    assert doctor.versions_check(["torch"], {"torch": "2.13.0+cpu"}, {"torch": ">=2.13,<2.14"}).detail == "as tested"


def test_constraints_are_read() -> None:
    assert doctor.parse_constraints("# comment\nA_b==1.0  # why\n\ntorch>=2.13,<2.14\n") == {"a-b": "==1.0", "torch": "<2.14,>=2.13"}


def test_clock() -> None:
    assert doctor.clock_check(1_000_000, 1_000_000).ok
    assert not doctor.clock_check(1_000_000, 2_000_000).ok


def test_a_port_in_use_carries_its_remedy() -> None:
    problem = Unavailable("port 8080 is in use by envoy (pid 123)", "Stop it or set MODELWAY_GATEWAY_PORT.")
    state = PortState(key="gateway_port", host="127.0.0.1", port=8080, ours=False, problem=problem)
    assert doctor.port_check(state) == Check(
        name="gateway port", ok=False, detail="port 8080 is in use by envoy (pid 123)", fix="Stop it or set MODELWAY_GATEWAY_PORT."
    )
    ours = PortState(key="gateway_port", host="127.0.0.1", port=8080, ours=True, problem=None)
    assert doctor.port_check(ours).detail == "127.0.0.1:8080 is ours"


def test_the_doctor_passes_here_and_makes_nothing(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", gateway_port=free_port(), control_port=free_port(), mlflow_port=free_port())
    checks = {check.name: check for check in doctor.run_doctor(settings)}
    # How full the disk is and which variables are set is the machine's affair, not the project's.
    assert [check for check in checks.values() if not check.ok and check.name not in ("disk", "environment", "gpu")] == []
    assert {"python", "onnxruntime", "java", "envoy", "torchserve", "home", "sockets", "gateway port", "versions", "clock"} <= set(checks)
    assert "25" in checks["java"].detail
    assert not settings.home.exists()
