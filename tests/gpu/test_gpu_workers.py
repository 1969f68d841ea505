"""Workers on a real NVIDIA GPU: answers, several per device, recorded runs, no silent fallback.

Never run so far for want of a machine; what does not need one is in tests/unit/serving/test_runtime_gpu.py.
"""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest

from registry.names import ModelVersion
from registry.tuning import WorkerLayout
from serving.archive import Archive, RuntimeOptions, build_archive, open_archive
from serving.golden import PROBE_HEADERS
from serving.runtime.modelway_runtime import worker
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.gpu import CUDA, TENSORRT
from serving.runtime.modelway_runtime.jsons import dumps
from serving.tuning.workers import Workers
from support.bundles import expected_logits, make_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/proc/driver/nvidia/version").exists(), reason="there is no NVIDIA driver here"),
]


def archive_for(root: Path, options: RuntimeOptions, variant: str = "onnx-fp32") -> Archive:
    version = ModelVersion("digits", 1)
    bundle = make_bundle(root / "bundle", version=version, weights_seed=1, variants=(variant,))
    return build_archive(bundle, variant, version, root / "archives", options)


def unpack(archive: Archive, into: Path) -> Path:
    with zipfile.ZipFile(archive.path) as content:
        content.extractall(into)
    return into


def answer(core: Core, rows: np.ndarray) -> np.ndarray:
    request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]}
    (got,) = core.handle([({"x-modelway-protocol": "v2-infer"}, dumps(request))])
    assert got.status == 200, got.body
    output = httpx.Response(200, content=got.body).json()["outputs"][0]
    return np.reshape(output["data"], output["shape"])


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_worker_answers_from_the_gpu(tmp_path: Path, cuda_graph: bool) -> None:
    archive = archive_for(tmp_path, RuntimeOptions(provider=CUDA, cuda_graph=cuda_graph, max_rows=32))
    core = worker.load(unpack(archive, tmp_path / "unpacked"), archive.engine_version, 0)
    for seed, size in enumerate((1, 32, 5, 3, 8, 1, 32)):
        rows = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)
        np.testing.assert_allclose(answer(core, rows), expected_logits(rows, weights_seed=1), rtol=1e-3, atol=1e-4)


def test_torchscript_answers_from_the_gpu(tmp_path: Path) -> None:
    archive = archive_for(tmp_path, RuntimeOptions(provider=CUDA), variant="torchscript-fp32")
    core = worker.load(unpack(archive, tmp_path / "unpacked"), archive.engine_version, 0)
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(answer(core, rows), expected_logits(rows, weights_seed=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_tensorrt_answers_where_it_is_installed(tmp_path: Path, half: bool) -> None:
    if TENSORRT not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no TensorRT provider")
    archive = archive_for(tmp_path, RuntimeOptions(provider=TENSORRT, tensorrt_fp16=half))
    core = worker.load(unpack(archive, tmp_path / "unpacked"), archive.engine_version, 0)
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(answer(core, rows), expected_logits(rows, weights_seed=1), rtol=1e-2, atol=1e-2)


def test_several_workers_share_one_device(tmp_path: Path) -> None:
    archive = archive_for(tmp_path, RuntimeOptions(provider=CUDA))
    golden = open_archive(archive.path).golden
    path = f"http://worker/predictions/digits/{archive.engine_version}"

    def ask(socket: str) -> tuple[int, bytes]:
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket)) as client:
            response = client.post(path, content=golden.request(), headers=dict(PROBE_HEADERS))
            return response.status_code, response.content

    with (
        Workers(unpack(archive, tmp_path / "unpacked"), WorkerLayout(num_workers=3, num_threads=1, batch_size=8)) as workers,
        ThreadPoolExecutor(12) as pool,
    ):
        answers = list(pool.map(ask, workers.sockets * 20))
    assert [golden.judge(*each).problems for each in answers] == [()] * 60
