from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from registry.errors import UsageError
from serving.ports import LoadState
from serving.torchserve.config import TorchServeConfig, render_log4j, render_properties
from serving.torchserve.launch import prepare, process
from serving.torchserve.states import WorkerReport, loaded_archive

STARTED = "2026-11-24T04:13:14.859Z"
STARTED_AT = 1795493594.859


def worker(slot: int, status: str) -> dict[str, Any]:
    return {"id": str(slot), "status": status, "startTime": STARTED, "pid": 1}


def described(*workers: dict[str, Any], wanted: int) -> dict[str, Any]:
    return {"modelName": "digits", "modelVersion": "1-x-0", "minWorkers": wanted, "workers": list(workers)}


def report(state: str, reason: str = "", *, at: float = STARTED_AT + 5) -> WorkerReport:
    return WorkerReport(state=state, reason=reason, at=at)


READY, OTHER = "READY", "UNLOADING"


@pytest.mark.parametrize(
    ("description", "reports", "state", "detail"),
    [
        pytest.param(described(wanted=0), {}, LoadState.REGISTERED, "", id="no worker wanted"),
        pytest.param(described(wanted=1), {}, LoadState.LOADING, "", id="no worker yet"),
        pytest.param(described(worker(9000, OTHER), wanted=1), {}, LoadState.LOADING, "", id="said nothing yet"),
        pytest.param(described(worker(9000, OTHER), wanted=1), {"9000": report("loading")}, LoadState.LOADING, "", id="loads"),
        pytest.param(described(worker(9000, READY), wanted=1), {"9000": report("ready")}, LoadState.READY, "", id="ready"),
        pytest.param(described(worker(9000, OTHER), wanted=1), {"9000": report("ready")}, LoadState.LOADING, "", id="killed while ready"),
        pytest.param(described(worker(9000, OTHER), wanted=1), {"9000": report("failed", "why")}, LoadState.FAILED, "why", id="failed"),
        pytest.param(
            described(worker(9000, OTHER), wanted=1),
            {"9000": report("loading", "why")},
            LoadState.FAILED,
            "why",
            id="tries again",
        ),
        pytest.param(
            described(worker(9000, OTHER), wanted=1),
            {"9000": report("failed", "old", at=STARTED_AT - 60)},
            LoadState.LOADING,
            "",
            id="a slot's earlier life",
        ),
        pytest.param(described(worker(9000, READY), worker(9001, OTHER), wanted=2), {}, LoadState.DEGRADED, "", id="one of two"),
        pytest.param(
            described(worker(9000, READY), worker(9001, OTHER), wanted=2),
            {"9001": report("failed", "why")},
            LoadState.DEGRADED,
            "why",
            id="one of two failed",
        ),
        pytest.param(
            described(worker(9000, OTHER), worker(9001, OTHER), wanted=2),
            {"9000": report("failed", "why"), "9001": report("failed", "why")},
            LoadState.FAILED,
            "why",
            id="both failed alike",
        ),
    ],
)
def test_load_states(description: dict[str, Any], reports: dict[str, WorkerReport], state: LoadState, detail: str) -> None:
    loaded = loaded_archive(description, reports)
    assert (loaded.model, loaded.engine_version, loaded.state, loaded.detail) == ("digits", "1-x-0", state, detail)


def config(tmp_path: Path, **settings: Any) -> TorchServeConfig:
    given = {"name": "node-0", "directory": tmp_path / "node", "socket_dir": tmp_path / "s", "log_file": tmp_path / "log"}
    return TorchServeConfig(**(given | settings))


def test_a_socket_path_that_linux_cannot_bind_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"socket path of node node-0 too long .* bytes, at most 107"):
        config(tmp_path, socket_dir=Path("/" + "x" * 100))
    config(tmp_path, socket_dir=Path("/" + "x" * (107 - len("/w/mmmmmmmmmmmm.000000000000.65535.sock") - 1)))


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"heap_mb": 0}, {"directory": Path("relative")}])
def test_settings_are_checked(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="node-0"):
        config(tmp_path, **settings)


def test_a_path_that_would_break_the_properties_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        render_properties(config(tmp_path, directory=tmp_path / "a\nmodel_store=b"), (1, 2))


def test_the_log_configuration_is_xml_for_any_path(tmp_path: Path) -> None:
    files = [
        element.get("fileName")
        for element in ET.fromstring(render_log4j(config(tmp_path, directory=tmp_path / 'a&b"c<d'))).iter("RollingFile")
    ]
    assert files == [str(tmp_path / 'a&b"c<d' / "logs" / name) for name in ("torchserve.log", "workers.log")]


def test_preparing_keeps_archives_and_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    node = config(tmp_path)
    prepare(node)
    (node.model_store / "a.mar").write_bytes(b"")
    (node.model_store / ".b.mar.1.partial").write_bytes(b"")
    leftovers = [*node.sockets, node.key_file, node.tmp_dir / "models", node.status_dir / "digits"]
    for path in leftovers:
        path.write_bytes(b"")
    first = node.properties_file.read_text()
    prepare(node)
    assert [path.name for path in node.model_store.iterdir()] == ["a.mar"]
    assert not [path for path in leftovers if path.exists()]
    assert node.java_tmp.resolve() == node.tmp_dir
    ports = [line for line in first.splitlines() if "_port=" in line]
    assert len(ports) == 2
    assert len({line.partition("=")[2] for line in ports}) == 2


def test_the_process_inherits_nothing_and_keeps_to_its_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    spec = process(config(tmp_path, extra_env={"CUDA_VISIBLE_DEVICES": "0"}))
    assert "planted" not in str(spec)
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "0"
    assert f"-Djava.io.tmpdir={tmp_path / 's' / 't'}" in spec.argv
    assert Path(spec.argv[0]).is_file()
    assert spec.cwd == tmp_path / "node" / "work"
    assert all(path.is_relative_to(tmp_path) for path in spec.owned_paths)


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file")
    with pytest.raises(UsageError, match="cannot prepare node node-0"):
        prepare(config(tmp_path))


def test_a_java_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Java there"):
        process(config(tmp_path, java_home=tmp_path))
