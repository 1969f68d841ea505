"""The contract of `ServingEngine`, held by the real TorchServe and by the in-memory engine of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from registry.errors import Corrupt, NotFound, TimedOut, Unavailable
from serving.archive import Archive, open_archive
from serving.golden import PROBE_HEADERS
from serving.ports import LoadState, ServingEngine
from support.bundles import expected_logits
from support.fake_engine import FakeEngine
from support.nodes import LOAD_TIMEOUT_S, RunningNode, make_archive
from support.polling import wait_until


class ServingEngineContract:
    """What every engine does. `engine` is running and empty of the archives that a test makes."""

    def _load(self, engine: ServingEngine, archive: Archive, num_workers: int = 1) -> None:
        engine.store(archive.path, archive.sha256)
        engine.register(archive.name)
        engine.scale("digits", archive.engine_version, num_workers)

    def _state(self, engine: ServingEngine, archive: Archive) -> LoadState | None:
        loaded = engine.observe().archives.get(("digits", archive.engine_version))
        return loaded.state if loaded else None

    def _wait(self, engine: ServingEngine, archive: Archive, state: LoadState | None) -> None:
        wait_until(lambda: self._state(engine, archive) is state, LOAD_TIMEOUT_S, f"{archive.name} {state}")

    def _probe(self, engine: ServingEngine, archive: Archive) -> float:
        golden = open_archive(archive.path).golden
        status, body = engine.infer("digits", archive.engine_version, golden.request(), PROBE_HEADERS, 10.0)
        comparison = golden.judge(status, body)
        assert not comparison.problems
        return comparison.max_abs_error

    def test_an_archive_goes_from_the_store_to_ready_and_answers_its_golden_set(self, engine: ServingEngine, tmp_path: Path) -> None:
        archive = make_archive(tmp_path, 1)
        engine.store(archive.path, archive.sha256)
        assert archive.name in engine.observe().stored
        assert self._state(engine, archive) is None
        engine.register(archive.name)
        assert self._state(engine, archive) is LoadState.REGISTERED
        engine.scale("digits", archive.engine_version, 1)
        self._wait(engine, archive, LoadState.READY)
        assert self._probe(engine, archive) < 1e-4
        engine.unregister("digits", archive.engine_version)
        assert self._state(engine, archive) is None
        assert archive.name not in engine.observe().stored

    def test_every_effect_can_be_repeated(self, engine: ServingEngine, tmp_path: Path) -> None:
        archive = make_archive(tmp_path, 2)
        for _ in range(2):
            self._load(engine, archive)
        self._wait(engine, archive, LoadState.READY)
        self._load(engine, archive)
        assert self._state(engine, archive) is LoadState.READY
        for _ in range(2):
            engine.unregister("digits", archive.engine_version)
        assert self._state(engine, archive) is None

    def test_versions_are_served_side_by_side_and_never_mixed_up(self, engine: ServingEngine, tmp_path: Path) -> None:
        archives = {version: make_archive(tmp_path, version) for version in (3, 4)}
        for archive in archives.values():
            self._load(engine, archive)
        for version, archive in archives.items():
            self._wait(engine, archive, LoadState.READY)
            status, body = engine.infer("digits", archive.engine_version, b"[[1, 2, 3, 4]]", {}, 10.0)
            assert status == 200
            np.testing.assert_allclose(np.asarray(json.loads(body)), expected_logits([[1, 2, 3, 4]], weights_seed=version), rtol=1e-4)
        engine.unregister("digits", archives[3].engine_version)
        assert self._probe(engine, archives[4]) < 1e-4
        engine.unregister("digits", archives[4].engine_version)

    def test_an_archive_that_cannot_load_is_failed_with_its_reason(self, engine: ServingEngine, tmp_path: Path) -> None:
        archive = make_archive(tmp_path, 5, fault="crash-at-load")
        self._load(engine, archive)
        self._wait(engine, archive, LoadState.FAILED)
        detail = engine.observe().archives["digits", archive.engine_version].detail
        assert "could not be loaded" in detail
        try:  # a real engine may let it wait for a worker that never comes
            status, _ = engine.infer("digits", archive.engine_version, b"[[1, 2, 3, 4]]", {}, 1.0)
        except (Unavailable, TimedOut):
            status = 503
        assert status in (500, 503)
        engine.unregister("digits", archive.engine_version)

    def test_each_worker_answers_by_itself_until_the_archive_is_unloaded(self, engine: ServingEngine, tmp_path: Path) -> None:
        archive = make_archive(tmp_path, 7)
        self._load(engine, archive)
        self._wait(engine, archive, LoadState.READY)
        (worker,) = engine.worker_sockets()
        assert engine.observe().worker_sockets == (worker,)
        status, body = engine.infer("digits", archive.engine_version, b"[[1, 2, 3, 4]]", {}, 10.0, worker=worker)
        assert status == 200
        np.testing.assert_allclose(np.asarray(json.loads(body)), expected_logits([[1, 2, 3, 4]], weights_seed=7), rtol=1e-4)
        engine.unregister("digits", archive.engine_version)
        assert engine.worker_sockets() == ()

    def test_scaling_to_zero_leaves_it_registered(self, engine: ServingEngine, tmp_path: Path) -> None:
        archive = make_archive(tmp_path, 6)
        self._load(engine, archive)
        self._wait(engine, archive, LoadState.READY)
        engine.scale("digits", archive.engine_version, 0)
        self._wait(engine, archive, LoadState.REGISTERED)
        engine.unregister("digits", archive.engine_version)

    def test_what_is_not_there_is_not_found(self, engine: ServingEngine) -> None:
        with pytest.raises(NotFound):
            engine.scale("digits", "99-onnx-fp32-000000000000", 1)
        with pytest.raises(NotFound):
            engine.register("digits-99-onnx-fp32-000000000000.mar")
        assert engine.infer("digits", "99-onnx-fp32-000000000000", b"[]", {}, 10.0)[0] == 404

    def test_a_wrong_digest_is_refused_and_leaves_nothing(self, engine: ServingEngine, tmp_path: Path) -> None:
        archive = make_archive(tmp_path, 7)
        with pytest.raises(Corrupt, match="wrong digest"):
            engine.store(archive.path, "0" * 64)
        assert archive.name not in engine.observe().stored


class TestFakeEngine(ServingEngineContract):
    @pytest.fixture
    def engine(self) -> FakeEngine:
        return FakeEngine(num_looks_until_ready=2)

    def test_down_is_seen_and_said(self, engine: FakeEngine) -> None:
        engine.down = True
        assert not engine.observe().reachable
        with pytest.raises(Unavailable):
            engine.register("digits-1-onnx-fp32-000000000000.mar")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    node = RunningNode(tmp_path_factory.mktemp("contract"))
    try:
        yield node.start()
    finally:
        node.stop()


@pytest.mark.integration
class TestTorchServe(ServingEngineContract):
    @pytest.fixture
    def engine(self, running: RunningNode) -> ServingEngine:
        return running.node

    def test_down_is_seen_and_said(self, tmp_path: Path, make_down: Callable[[], ServingEngine]) -> None:
        engine = make_down()
        assert not engine.observe().reachable
        archive = make_archive(tmp_path, 8)
        engine.store(archive.path, archive.sha256)
        with pytest.raises(Unavailable):
            engine.register(archive.name)

    @pytest.fixture
    def make_down(self, tmp_path: Path) -> Iterator[Callable[[], ServingEngine]]:
        node = RunningNode(tmp_path, "node-down")

        def make() -> ServingEngine:
            node.config.model_store.mkdir(parents=True)
            return node.node

        yield make
        node.stop()
