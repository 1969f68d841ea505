"""The adapter to workers' own sockets, against real listeners."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry.errors import TimedOut, Unavailable
from serving.runtime.modelway_runtime.batcher import Limits
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.listener import Listener
from serving.runtime.modelway_runtime.messages import ModelInfo
from serving.runtime.modelway_runtime.sockets import LONGEST_NAME, path_of
from serving.runtime.modelway_runtime.tensors import Array, Spec
from serving.torchserve.workers import WorkerSockets

DIGESTS = ("0" * 12, "1" * 12)


class Same:
    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return {"y": inputs[0]}


def engine_version(digest: str) -> str:
    return f"3-onnx-fp32-{digest}"


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[Listener]]:
    model = ModelInfo("same", "3", (Spec("x", "FP32", (-1, 1)),), (Spec("y", "FP32", (-1, 1)),), max_rows=8)
    started = []
    for digest in DIGESTS:
        for slot in ("9000", "9001"):
            path = path_of(tmp_path, "same", engine_version(digest), slot)
            started.append(Listener(Core(model, Same()), path, "same", engine_version(digest), Limits()))
            started[-1].start()
    yield started
    for listener in started:
        listener.close()


def test_a_worker_is_asked_by_its_socket(listeners: list[Listener], tmp_path: Path) -> None:
    workers = WorkerSockets(tmp_path)
    assert workers.paths() == tuple(sorted(str(listener.path) for listener in listeners))
    target = f"/predictions/same/{engine_version(DIGESTS[1])}"
    assert workers.infer(str(listeners[2].path), target, b"[[7]]", {}, 5.0) == (200, b"[[7.0]]")
    assert workers.infer(str(listeners[0].path), target, b"[[7]]", {}, 5.0)[0] == 404  # another archive's


def test_metrics_of_all_workers_are_one_text_that_prometheus_reads(listeners: list[Listener], tmp_path: Path) -> None:
    workers = WorkerSockets(tmp_path)
    for listener in listeners[1:]:
        workers.infer(str(listener.path), listener.target.decode(), b"[[7]]", {}, 5.0)
    (tmp_path / "dead.sock").touch()
    text = workers.metrics_text()
    assert text.count("# TYPE modelway_worker_batch_size histogram") == 1
    counts = {
        (sample.labels["engine_version"], sample.labels["slot"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "modelway_worker_batch_size_count"
    }
    first, second = map(engine_version, DIGESTS)
    assert counts == {(first, "9000"): 0, (first, "9001"): 1, (second, "9000"): 1, (second, "9001"): 1}


def test_unloading_takes_an_archives_sockets_away_and_no_others(listeners: list[Listener], tmp_path: Path) -> None:
    WorkerSockets(tmp_path).remove("same", engine_version(DIGESTS[0]))
    assert WorkerSockets(tmp_path).paths() == tuple(sorted(str(listener.path) for listener in listeners[2:]))


def test_a_socket_without_a_worker_is_unavailable_and_a_silent_one_times_out(tmp_path: Path) -> None:
    workers = WorkerSockets(tmp_path)
    with pytest.raises(Unavailable, match=r"dead\.sock does not answer"):
        workers.infer(str(tmp_path / "dead.sock"), "/", b"", {}, 1.0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        with pytest.raises(TimedOut, match=r"did not answer within 0\.05 s"):
            workers.infer(str(tmp_path / "silent.sock"), "/", b"", {}, 0.05)


def test_no_name_is_longer_than_announced(tmp_path: Path) -> None:
    name = path_of(tmp_path, "m" * 200, "123456-torchscript-int8-0123456789ab", "65535").name
    assert len(name) <= len(LONGEST_NAME)
    assert name.startswith("mmmmmmmmmmmm.0123456789ab.")
