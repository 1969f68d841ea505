"""A compiled model, and archives that are directories, served by the worker's own listener and by the real TorchServe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from registry.bundle import Bundle, write_manifest
from registry.names import ModelVersion
from serving.archive import Archive, RuntimeOptions, build_archive, open_archive
from serving.archive_forms import archive_sha256, unpack_archive
from serving.runtime.modelway_runtime import backend_aoti, worker
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.files import engine_version
from support.bundles import SIGNATURE_OF_TESTS, expected_logits, make_bundle, weights
from support.nodes import RunningNode
from training.data.batches import Rows
from training.export.exporter import ExportContext
from training.export.variants.aoti import AotInductor

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler, and there is no g++ here"),
]

VERSION = ModelVersion("digits", 5)
ROWS = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 0.0, 2.0]]
NO_COMPILER = "/nonexistent"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The linear model of `support.bundles`, compiled."""
    root = tmp_path_factory.mktemp("bundle") / "b"
    made = make_bundle(root, version=VERSION, weights_seed=5, variants=("aoti",))
    directory = made.variant_dir("aoti")
    (directory / "model.onnx").unlink()
    weight, bias = weights(5)
    model = torch.nn.Linear(4, 3).eval()
    model.weight.data, model.bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias)
    context = ExportContext(
        signature=SIGNATURE_OF_TESTS,
        example={"input": torch.rand(4, 4)},
        calibration=Rows(inputs={"input": np.zeros((4, 4), np.float32)}, target=np.zeros(4, np.int64)),
        task="classification",
        scratch=tmp_path_factory.mktemp("scratch"),
    )
    AotInductor().export(model, context, directory)
    write_manifest(root)
    return Bundle.open(root)


@pytest.fixture(scope="module", params=[1 << 40, 0], ids=["zip", "directory"])
def archive(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return build_archive(bundle, "aoti", VERSION, tmp_path_factory.mktemp("archives"), directory_above_bytes=request.param)


@pytest.fixture
def unpacked(archive: Archive, tmp_path: Path) -> Path:
    unpack_archive(archive.path, tmp_path / "unpacked")
    return tmp_path / "unpacked"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    node = RunningNode(tmp_path_factory.mktemp("node"), extra_env={"CXX": NO_COMPILER})
    try:
        yield node.start()
    finally:
        node.stop()


def test_the_listener_answers_without_a_compiler(unpacked: Path) -> None:
    sockets = Path(tempfile.mkdtemp(prefix="mw-"))
    socket = sockets / "w.sock"
    environment = {"PATH": NO_COMPILER, "CXX": NO_COMPILER, "TMPDIR": str(sockets), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serving.runtime.modelway_runtime.serve",
            "--archive",
            str(unpacked),
            "--socket",
            str(socket),
            "--until-eof",
        ],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n", process.communicate(timeout=20)[1].decode()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://worker") as client:
            answer = client.post(f"/predictions/digits/{engine_version(unpacked)}", json=ROWS)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json(), expected_logits(ROWS, weights_seed=5), rtol=1e-5)
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(sockets)


def test_torchserve_answers_and_forgets_it(running: RunningNode, archive: Archive) -> None:
    running.load(archive)
    status, body = running.node.infer("digits", archive.engine_version, json.dumps(ROWS).encode(), {}, 20.0)
    assert status == 200, body
    np.testing.assert_allclose(json.loads(body), expected_logits(ROWS, weights_seed=5), rtol=1e-5)
    stored = running.config.model_store / archive.name
    assert stored.is_dir() == archive.path.is_dir()
    assert archive_sha256(stored) == archive.sha256  # serving has written nothing into it
    running.node.unregister("digits", archive.engine_version)
    assert not stored.exists()
    assert open_archive(archive.path, archive.sha256)  # ours is still there
    running.load(archive)  # and may come back
    running.node.unregister("digits", archive.engine_version)


def test_a_directory_of_an_onnx_model_is_served(running: RunningNode, tmp_path: Path) -> None:
    version = ModelVersion("digits", 2)
    bundle = make_bundle(tmp_path / "b", version=version, weights_seed=2)
    archive = build_archive(bundle, "onnx-fp32", version, tmp_path / "archives", directory_above_bytes=0)
    running.load(archive, num_workers=2)
    status, body = running.node.infer("digits", archive.engine_version, json.dumps(ROWS).encode(), {}, 20.0)
    assert status == 200, body
    np.testing.assert_allclose(json.loads(body), expected_logits(ROWS, weights_seed=2), rtol=1e-4)
    running.node.unregister("digits", archive.engine_version)


def test_a_changed_library_is_never_run(unpacked: Path, archive: Archive) -> None:
    file = unpacked / "model" / "model.pt2"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(LoadError, match=r"wrong digest of a file in the archive .model/model\.pt2"):
        worker.load(unpacked, archive.engine_version)


def test_a_cpu_without_its_instructions_refuses_it(unpacked: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_aoti, "cpu_flags", lambda: frozenset({"sse2"}))
    with pytest.raises(LoadError, match=r"compiled for a CPU with .*which this one has not"):
        worker.load(unpacked, archive.engine_version)


def test_another_provider_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    archive = build_archive(bundle, "aoti", VERSION, tmp_path, RuntimeOptions(provider="CUDAExecutionProvider"), directory_above_bytes=0)
    with pytest.raises(LoadError, match="compiled for the CPU"):
        worker.load(archive.path, archive.engine_version)
