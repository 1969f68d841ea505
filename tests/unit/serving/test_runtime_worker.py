"""A worker from the archive to its answers, without TorchServe's Java; the handler with TorchServe's own classes."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.names import ModelVersion
from serving.archive import Archive, RuntimeOptions, build_archive, open_archive
from serving.runtime.modelway_handler import ModelwayHandler
from serving.runtime.modelway_runtime import backends, files, status, worker
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.status import WorkerStatus
from support.bundles import expected_logits, golden_inputs, make_bundle
from support.nodes import make_archive

MAR = files.MAR_MANIFEST


def unpack(archive: Archive, into: Path) -> Path:
    with zipfile.ZipFile(archive.path) as content:
        content.extractall(into)
    return into


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return make_archive(tmp_path, 1)


@pytest.fixture
def root(archive: Archive, tmp_path: Path) -> Path:
    return unpack(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("variant", ["onnx-fp32", "torchscript-fp32"])
def test_an_archive_answers_with_its_models_numbers(tmp_path: Path, variant: str) -> None:
    archive = make_archive(tmp_path, 2, variant=variant)
    core = worker.load(unpack(archive, tmp_path / "unpacked"), archive.engine_version)
    golden = open_archive(archive.path).golden
    answer = core.handle([({"x-modelway-protocol": "v2-infer"}, golden.request())])[0]
    assert golden.judge(answer.status, answer.body).problems == ()
    (bare,) = core.handle([({}, json.dumps(golden_inputs().tolist()).encode())])
    np.testing.assert_allclose(json.loads(bare.body), expected_logits(golden_inputs(), weights_seed=2), rtol=1e-4)
    assert json.loads(core.handle([({}, b'[["x"]]')])[0].body)["error"]


def test_raw_bytes_work_with_torchscript_too(tmp_path: Path) -> None:
    """They are read-only memory, which torch must not get."""
    archive = make_archive(tmp_path, 2, variant="torchscript-fp32")
    core = worker.load(unpack(archive, tmp_path / "unpacked"), archive.engine_version)
    raw = golden_inputs().astype("<f4").tobytes()
    head = json.dumps(
        {"inputs": [{"name": "input", "datatype": "FP32", "shape": [8, 4], "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    headers = {"x-modelway-protocol": "v2-infer", "inference-header-content-length": str(len(head))}
    answer = core.handle([(headers, head + raw)])[0]
    got = np.reshape(json.loads(answer.body)["outputs"][0]["data"], (8, 3))
    np.testing.assert_allclose(got, expected_logits(golden_inputs(), weights_seed=2), rtol=1e-4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash-at-load", "the model could not be loaded"),
        ("wrong-numbers", r"golden set: output logits is off by 1 \(allowed 0.0001 .*; 24 of 24 values, first in row 0\)"),
        ("wrong-shape", r"golden set: output logits has shape \[8, 4\], expected \[8, 3\]"),
        ("nan", "golden set: output logits is off by inf"),
    ],
)
def test_a_model_that_is_not_what_was_trained_never_loads(tmp_path: Path, fault: str, reason: str) -> None:
    archive = make_archive(tmp_path, 3, fault=fault)
    with pytest.raises(LoadError, match=reason):
        worker.load(unpack(archive, tmp_path / "unpacked"), archive.engine_version)


def test_a_golden_set_larger_than_a_batch_is_proved_in_parts(tmp_path: Path) -> None:
    good, bad = make_archive(tmp_path, 4, max_rows=3), make_archive(tmp_path, 5, max_rows=3, fault="wrong-numbers")
    worker.load(unpack(good, tmp_path / "good"), good.engine_version)
    with pytest.raises(LoadError, match="golden set"):
        worker.load(unpack(bad, tmp_path / "bad"), bad.engine_version)


def test_a_provider_that_is_not_there_is_no_silent_fallback(archive: Archive, root: Path) -> None:
    manifest = json.loads((root / files.MANIFEST).read_text())
    specs = ([], [])
    with pytest.raises(LoadError, match="execution provider NoSuchProvider is not installed here"):
        backends.load(root, "onnxruntime", *specs, {**manifest["options"], "provider": "NoSuchProvider"})


def test_a_provider_that_onnxruntime_replaces_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["WantedProvider", "CPUExecutionProvider"])

    class Fallen:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    options = {"provider": "WantedProvider", "intra_op_threads": 1}
    with pytest.raises(LoadError, match="WantedProvider was asked for, ONNX Runtime uses CPUExecutionProvider"):
        backends.load(root, "onnxruntime", [], [], options)


def _flip(root: Path) -> None:
    content = bytearray((root / "model/model.onnx").read_bytes())
    content[100] ^= 1
    (root / "model/model.onnx").write_bytes(content)


def _relink(root: Path) -> None:
    target = root.parent / "elsewhere"
    (root / "golden.npz").rename(target)
    (root / "golden.npz").symlink_to(target)


def _link_directory(root: Path) -> None:
    (root / "extra").symlink_to(root / "model")


def _edit_manifest(root: Path) -> None:
    manifest = json.loads((root / files.MANIFEST).read_text())
    manifest["options"]["max_rows"] = 10**9
    (root / files.MANIFEST).write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_flip, r"wrong digest of a file in the archive \(model/model.onnx\)"),
        (lambda root: (root / "model/model.onnx").write_bytes(b""), "wrong digest of a file"),
        (lambda root: (root / "golden.npz").unlink(), r"missing file in the archive \(golden.npz\)"),
        (lambda root: (root / "os.py").write_text(""), r"unexpected file in the archive \(os.py\)"),
        (lambda root: (root / "golden.npz").rename(root / "gold.npz"), "file in the archive"),
        (_relink, r"not a plain file in the archive \(golden.npz\)"),
        (_link_directory, r"unexpected file in the archive \(extra\)"),
        (_edit_manifest, f"wrong digest of {files.MANIFEST}"),
        (lambda root: (root / files.MANIFEST).unlink(), f"unreadable {files.MANIFEST}"),
        (lambda root: (root / files.MANIFEST).write_text("{}"), f"unreadable {files.MANIFEST}"),
    ],
)
def test_a_changed_archive_is_refused_before_the_model_is_touched(
    archive: Archive, root: Path, change: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "load", lambda *_, **__: pytest.fail("the model was touched"))
    assert callable(change)
    change(root)
    with pytest.raises(LoadError, match=reason):
        worker.load(root, archive.engine_version)


def test_pythons_own_cache_is_no_extra_file(archive: Archive, root: Path) -> None:
    (root / "modelway_runtime" / "__pycache__").mkdir()
    (root / "modelway_runtime" / "__pycache__" / "core.cpython-311.pyc").write_bytes(b"")
    worker.load(root, archive.engine_version)


# --- TorchServe's entry point


@pytest.fixture
def quiet_root_logger() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def service_class() -> Any:
    """TorchServe's own `Service`, whose import leaves files open and uses what is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ts.service import Service

        gc.collect()
    return Service


@pytest.mark.usefixtures("quiet_root_logger")
def test_the_handler_answers_batches_as_torchserve_sends_them(archive: Archive, root: Path, service_class: Any) -> None:
    handler = ModelwayHandler()
    manifest = json.loads((root / MAR).read_text())
    service = service_class("digits", str(root), manifest, handler.handle, None, 8)
    handler.initialize(service.context)
    bodies = [b"[[1,2,3,4]]", b"{", b"[[0,0,0,1]]"]
    batch = [
        {
            "requestId": f"r{index}".encode(),
            "headers": [{"name": b"X-Modelway-Protocol", "value": b"v1-predict" if index == 2 else b"predictions"}],
            "parameters": [{"name": "body", "contentType": "application/json", "value": bytearray(body)}],
        }
        for index, body in enumerate(bodies)
    ]
    headers, inputs, ids = service_class.retrieve_data_for_inference(batch)
    service.context.request_processor, service.context.request_ids = headers, ids
    answers = handler.handle(inputs, service.context)
    assert [service.context.get_response_status(index)[0] for index in range(3)] == [200, 400, 400]
    np.testing.assert_allclose(json.loads(answers[0]), expected_logits([[1, 2, 3, 4]], weights_seed=1), rtol=1e-4)
    assert "not valid JSON" in json.loads(answers[1])["error"]
    assert "JSON object" in json.loads(answers[2])["error"]
    assert service.context.get_response_content_type(0) == "application/json"


def test_the_handler_module_has_exactly_one_class() -> None:
    """Else TorchServe refuses the archive."""
    import serving.runtime.modelway_handler as module

    assert [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__] == [
        ModelwayHandler
    ]


@pytest.mark.usefixtures("quiet_root_logger")
def test_a_refusal_is_written_where_the_node_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_class: Any) -> None:
    bad = make_archive(tmp_path, 3, fault="wrong-numbers")
    root = unpack(bad, tmp_path / "unpacked")
    monkeypatch.setenv(status.DIRECTORY_VARIABLE, str(tmp_path / "status"))
    monkeypatch.setattr(sys, "argv", ["worker", "--sock-type", "unix", "--sock-name", "/tmp/.ts.sock.9007"])
    handler = ModelwayHandler()
    service = service_class("digits", str(root), json.loads((root / MAR).read_text()), handler.handle, None, 8)
    with pytest.raises(RuntimeError, match="refused to serve"):
        handler.initialize(service.context)
    report = json.loads((tmp_path / "status" / "digits" / bad.engine_version / "9007.json").read_text())
    assert report["state"] == "failed"
    assert report["pid"] == os.getpid()
    assert report["reason"].startswith("golden set: output logits is off by 1")


# --- what a worker says of itself


def written(file: Path) -> dict[str, object]:
    content = json.loads(file.read_text())
    assert isinstance(content, dict)
    return content


def as_if_by_another_worker(file: Path) -> None:
    """The same engine's earlier worker in that slot."""
    file.write_text(json.dumps({**written(file), "pid": os.getpid() + 1}))


def test_the_second_death_without_a_word_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "9000.json"
    WorkerStatus(file).loading()
    for deaths in (1, 2, 3):
        as_if_by_another_worker(file)
        WorkerStatus(file).loading()
        assert (written(file)["state"], written(file)["deaths"]) == ("loading", deaths)
        assert bool(written(file)["reason"]) is (deaths > 1)
    assert "without a word" in str(written(file)["reason"])


def test_the_reason_stays_while_the_load_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "9000.json"
    WorkerStatus(file).failed("no model")
    as_if_by_another_worker(file)
    again = WorkerStatus(file)
    again.loading()
    assert (written(file)["reason"], written(file)["deaths"]) == ("no model", 1)
    again.ready()
    assert written(file)["deaths"] == 0


def test_a_worker_that_was_killed_while_ready_is_no_death_at_load(tmp_path: Path) -> None:
    file = tmp_path / "9000.json"
    WorkerStatus(file).ready()
    as_if_by_another_worker(file)
    WorkerStatus(file).loading()
    assert written(file)["deaths"] == 0


def test_another_engines_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "9000.json"
    WorkerStatus(file).failed("no model")
    file.write_text(json.dumps({**written(file), "pid": 1, "engine_pid": 1}))
    WorkerStatus(file).loading()
    assert (written(file)["reason"], written(file)["deaths"]) == ("", 0)
    file.write_text("{")
    WorkerStatus(file).loading()
    assert written(file)["state"] == "loading"


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(status.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    WorkerStatus.of_this_process("digits", "1-x-0").failed("no model")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quiet_root_logger")
@pytest.mark.parametrize(("batch_size", "limit"), [(0, 7), (3, 3)])
def test_the_batch_limit_is_the_archives_and_else_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_class: Any, batch_size: int, limit: int
) -> None:
    version = ModelVersion("digits", 1)
    bundle = make_bundle(tmp_path / "bundle", version=version, weights_seed=1)
    archive = build_archive(bundle, "onnx-fp32", version, tmp_path / "archives", RuntimeOptions(batch_size=batch_size))
    root = unpack(archive, tmp_path / "unpacked")
    monkeypatch.setenv("MODELWAY_WORKER_SOCKET_DIR", str(tmp_path))
    monkeypatch.setenv("MODELWAY_WORKER_LIMITS", json.dumps({"batch_size": 7}))
    handler = ModelwayHandler()
    service = service_class("digits", str(root), json.loads((root / MAR).read_text()), handler.handle, None, 8)
    handler.initialize(service.context)
    try:
        assert handler._listener.limits.batch_size == limit
    finally:
        handler._listener.close()
