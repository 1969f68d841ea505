"""What a worker decides about GPUs, and the bound session on the one device that every machine has: the CPU.

What needs an NVIDIA GPU is in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from registry.errors import UsageError
from registry.names import ModelVersion
from serving.archive import RuntimeOptions
from serving.runtime.modelway_runtime import gpu
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.gpu import CPU, CUDA, TENSORRT, BoundSession
from serving.runtime.modelway_runtime.tensors import Spec
from support.bundles import expected_logits, make_bundle

INPUTS, OUTPUTS = (Spec("input", "FP32", (-1, 4)),), (Spec("logits", "FP32", (-1, 3)),)


def test_the_cpu_needs_no_settings() -> None:
    assert gpu.providers({"provider": CPU}, None) == [(CPU, {})]
    assert gpu.providers({"provider": CPU}, 3) == [(CPU, {})]


@pytest.mark.parametrize(("gpu_id", "device_id"), [(None, "0"), (0, "0"), (3, "3")])
def test_a_worker_computes_on_the_device_that_the_engine_gave_it(gpu_id: int | None, device_id: str) -> None:
    ((name, settings),) = gpu.providers({"provider": CUDA}, gpu_id)
    assert (name, settings["device_id"]) == (CUDA, device_id)
    assert "enable_cuda_graph" not in settings
    assert [(name, settings["device_id"]) for name, settings in gpu.providers({"provider": TENSORRT}, gpu_id)] == [
        (TENSORRT, device_id),
        (CUDA, device_id),
    ]


def test_graphs_and_half_precision_are_asked_for() -> None:
    assert gpu.providers({"provider": CUDA, "cuda_graph": True}, 0)[0][1]["enable_cuda_graph"] == "1"
    assert gpu.providers({"provider": TENSORRT}, 0)[0][1]["trt_fp16_enable"] == "0"
    assert gpu.providers({"provider": TENSORRT, "tensorrt_fp16": True}, 0)[0][1]["trt_fp16_enable"] == "1"


def test_nothing_that_runs_on_a_gpu_lists_the_cpu() -> None:
    """So that ONNX Runtime has nothing to fall back to by our own word."""
    for provider in (CUDA, TENSORRT):
        assert CPU not in [name for name, _ in gpu.providers({"provider": provider}, 0)]


def test_a_provider_that_is_not_installed_is_named_with_those_that_are() -> None:
    gpu.check_providers(CPU, [CPU])
    with pytest.raises(LoadError, match=rf"{CUDA} is not installed here \(there are {CPU}\)"):
        gpu.check_providers(CUDA, [CPU])


@pytest.mark.parametrize(
    "wrong",
    [{"cuda_graph": True}, {"cuda_graph": True, "provider": TENSORRT}, {"tensorrt_fp16": True}, {"tensorrt_fp16": True, "provider": CUDA}],
)
def test_options_of_another_provider_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="needs the provider"):
        RuntimeOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 12), (12, 12), (13, 13)])
def test_a_batch_is_filled_up_to_the_next_power_of_two_within_the_limit(rows: int, size: int) -> None:
    assert gpu.bucket(rows, 12) == size


def test_only_fixed_shapes_can_be_recorded(session: object) -> None:
    free = (Spec("input", "FP32", (-1, -1)),)
    assert not gpu.fixed_behind_the_batch(free)
    assert gpu.fixed_behind_the_batch(INPUTS)
    with pytest.raises(LoadError, match="a CUDA graph needs fixed shapes"):
        BoundSession(session, free, OUTPUTS, device="cpu", device_id=0, graph_rows=8)
    BoundSession(session, free, OUTPUTS, device="cpu", device_id=0)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> object:
    import onnxruntime

    bundle = make_bundle(tmp_path_factory.mktemp("gpu") / "bundle", version=ModelVersion("digits", 1), weights_seed=1)
    return onnxruntime.InferenceSession(str(bundle.variant_dir("onnx-fp32") / "model.onnx"), providers=[CPU])


def rows(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, 4)).astype(np.float32)


@pytest.mark.parametrize("graph_rows", [0, 1, 6, 8])
@pytest.mark.parametrize("sizes", [(1,), (5, 1, 3, 8, 2, 8), (9, 30, 4)])
def test_bound_answers_are_the_models_whatever_came_before(session: object, graph_rows: int, sizes: Sequence[int]) -> None:
    """Rows that an earlier, larger batch left behind, or the filling, must not show."""
    bound = BoundSession(session, INPUTS, OUTPUTS, device="cpu", device_id=0, graph_rows=graph_rows)
    answers = [(rows(size, seed), bound.run([rows(size, seed)])["logits"]) for seed, size in enumerate(sizes)]
    for given, got in answers:  # at the end: an answer must not change when the next batch runs
        np.testing.assert_allclose(got, expected_logits(given, weights_seed=1), rtol=1e-4)


def test_nothing_of_an_earlier_request_stays_in_the_filling(session: object) -> None:
    bound = BoundSession(session, INPUTS, OUTPUTS, device="cpu", device_id=0, graph_rows=8)
    bound.run([np.full((8, 4), np.inf, np.float32)])
    bound.run([rows(5)])
    ((_, filled),) = bound._recorded[8]._fixed
    assert (filled[:5] == rows(5)).all()
    assert (filled[5:] == 0).all()


def test_arrays_need_not_be_contiguous_or_writable(session: object) -> None:
    wide = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    wide.flags.writeable = False
    for graph_rows in (0, 8):
        bound = BoundSession(session, INPUTS, OUTPUTS, device="cpu", device_id=0, graph_rows=graph_rows)
        got = bound.run([wide[:, ::2]])["logits"]
        np.testing.assert_allclose(got, expected_logits(wide[:, ::2], weights_seed=1), rtol=1e-4)


def test_each_size_of_batch_is_recorded_once(session: object) -> None:
    bound = BoundSession(session, INPUTS, OUTPUTS, device="cpu", device_id=0, graph_rows=8)
    for size in (1, 3, 4, 3, 7, 8, 20):
        bound.run([rows(size)])
    assert sorted(bound._recorded) == [1, 4, 8]


def test_settings_choose_the_provider(tmp_path: Path) -> None:
    from modelway.composition import build_nodes, runtime_options
    from modelway.settings import Settings

    assert runtime_options(Settings(home=tmp_path, cuda_graphs=True)) == RuntimeOptions()  # no GPU, nothing to record
    assert runtime_options(Settings(home=tmp_path, gpus=2)).provider == CUDA
    assert runtime_options(Settings(home=tmp_path, gpus=2, cuda_graphs=True)).cuda_graph
    assert runtime_options(Settings(home=tmp_path, gpus=1, gpu_provider="tensorrt")).provider == TENSORRT
    assert [node.num_gpus for node in build_nodes(Settings(home=tmp_path, gpus=2, nodes=2))] == [2, 2]


def test_the_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    from benchmarks.gpu import missing

    driver = tmp_path / "version"
    assert "no NVIDIA GPU here" in missing(driver, [CUDA])
    driver.touch()
    assert "built for the CPU" in missing(driver, [CPU])
    assert missing(driver, [CUDA, CPU]) == ""
