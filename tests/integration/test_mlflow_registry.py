"""The MLflow adapter when MLflow is away, hangs, or dies in the middle. The contract is in tests/contract."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import mlflow_registry
from registry.bundle import Bundle
from registry.errors import Corrupt, Unavailable
from registry.mlflow_registry import MlflowRegistry
from registry.names import ModelVersion
from support.bundles import make_bundle
from support.mlflow_store import MLFLOW_WARNINGS, MlflowServer, MlflowStore, new_store, serve
from support.ports import free_port

# MLflow's own settings would keep a call waiting for 4 minutes: with them, these tests run out of time.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120), *MLFLOW_WARNINGS]

DIGITS = ModelVersion("digits", 1)
SETTINGS = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    return new_store(tmp_path / "mlflow")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with serve(new_store(tmp_path_factory.mktemp("mlflow") / "store")) as server:
        yield server


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", version=DIGITS, weights_seed=1)


def calls(registry: MlflowRegistry, bundle: Path, into: Path) -> list[Callable[[], object]]:
    return [
        registry.registered_models,
        lambda: registry.versions("digits"),
        lambda: registry.version(DIGITS),
        lambda: registry.aliases("digits"),
        lambda: registry.set_alias(DIGITS, "production"),
        lambda: registry.set_tag(DIGITS, "key", "value"),
        lambda: registry.attach_bundle(DIGITS, bundle),
        lambda: registry.fetch_bundle(DIGITS, into),
    ]


def test_a_server_that_is_not_there_is_unavailable_by_its_address(bundle: Bundle, tmp_path: Path) -> None:
    port = free_port()
    registry = MlflowRegistry(f"http://ada:secret@127.0.0.1:{port}")
    for call in calls(registry, bundle.root, tmp_path / "fetched"):
        with pytest.raises(Unavailable, match=rf"MLflow does not answer \(http://127\.0\.0\.1:{port}.*modelway status") as raised:
            call()
        assert "secret" not in str(raised.value)
    assert not (tmp_path / "fetched").exists()


def test_a_server_that_hangs_is_unavailable_and_used_again_when_it_goes_on(server: MlflowServer, bundle: Bundle, tmp_path: Path) -> None:
    registry = MlflowRegistry(server.url, timeout_s=1)
    version = server.store.register("digits")
    assert registry.version(version).run_id
    server.pause()
    try:
        for call in calls(registry, bundle.root, tmp_path / "fetched"):
            with pytest.raises(Unavailable, match="MLflow does not answer"):
                call()
    finally:
        server.go_on()
    assert registry.attach_bundle(version, bundle.root).bundle_sha256 == bundle.sha256


def test_a_server_that_is_killed_is_unavailable(store: MlflowStore, bundle: Bundle, tmp_path: Path) -> None:
    with serve(store) as server:
        registry = MlflowRegistry(server.url)
        registry.attach_bundle(server.store.register("digits"), bundle.root)
        server.kill()
        for call in calls(registry, bundle.root, tmp_path / "fetched"):
            with pytest.raises(Unavailable):
                call()
    # Its store is still there, for who reads it directly.
    direct = MlflowRegistry(store.uri)
    assert direct.version(DIGITS).bundle_sha256 == bundle.sha256


@contextmanager
def listener(*, answers: bool) -> Iterator[int]:
    """A port that refuses connections, or takes them and never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if answers:
            taken.listen(16)
        yield int(taken.getsockname()[1])


@pytest.mark.parametrize("hangs", [False, True])
def test_an_artifact_store_that_does_not_answer_is_unavailable(store: MlflowStore, bundle: Bundle, tmp_path: Path, hangs: bool) -> None:
    # MLflow itself answers; what keeps the files does not.
    registry = MlflowRegistry(store.uri, transfer_timeout_s=1)
    with listener(answers=hangs) as port:
        location = f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts"
        version = store.register("digits", artifact_location=location)
        with pytest.raises(Unavailable):
            registry.attach_bundle(version, bundle.root)
        assert registry.version(version).bundle is None
        registry.set_tag(version, mlflow_registry.BUNDLE_TAG, f"bundles/{bundle.sha256[:16]}@sha256:{bundle.sha256}")
        with pytest.raises(Unavailable):
            registry.fetch_bundle(version, tmp_path / "fetched")
        with pytest.raises(Unavailable):
            registry.attach_bundle(version, bundle.root)
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("step", ["log_artifacts", "download_artifacts", "set_model_version_tag"])
def test_a_crash_while_a_bundle_is_attached_leaves_the_old_one(
    store: MlflowStore, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    registry = MlflowRegistry(store.uri)
    version = store.register("digits")
    old = registry.attach_bundle(version, bundle.root)
    newer = make_bundle(tmp_path / "newer", version=DIGITS, weights_seed=2)
    client = registry._client

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, step, crash)
        with pytest.raises(KeyboardInterrupt):
            registry.attach_bundle(version, newer.root)
    assert registry.version(version) == old
    assert Bundle.open(registry.fetch_bundle(version, tmp_path / "old")).sha256 == bundle.sha256
    assert registry.attach_bundle(version, newer.root).bundle_sha256 == newer.sha256
    assert Bundle.open(registry.fetch_bundle(version, tmp_path / "new")).sha256 == newer.sha256


def test_what_was_damaged_on_its_way_is_never_pointed_to(
    store: MlflowStore, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = MlflowRegistry(store.uri)
    version = store.register("digits")
    client = registry._client
    upload = client.log_artifacts

    def upload_less(run_id: str, directory: str, location: str) -> None:
        upload(run_id, directory, location)
        (file,) = store.artifacts.glob(f"**/{location}/signature.json")
        file.write_bytes(file.read_bytes()[:-1])

    monkeypatch.setattr(client, "log_artifacts", upload_less)
    with pytest.raises(Corrupt, match=f"stored bundle of {version} is not what it was .*signature.json"):
        registry.attach_bundle(version, bundle.root)
    assert registry.version(version).bundle is None


def test_a_store_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a directory would have to be")
    with pytest.raises(Unavailable, match="MLflow does not answer"):
        MlflowRegistry(f"sqlite:///{tmp_path}/file/mlflow.db").versions("digits")


def test_mlflow_s_settings_are_ours_during_a_call_and_its_own_afterwards(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "true")
    registry = MlflowRegistry(store.uri, timeout_s=2.5)
    seen: list[tuple[str | None, ...]] = []
    client = registry._client
    monkeypatch.setattr(client, "get_registered_model", lambda _: seen.append(tuple(os.environ.get(name) for name in SETTINGS)))
    with pytest.raises(AttributeError):  # the answer is none
        registry.aliases("digits")
    assert seen == [("3", "0", "false")]
    assert tuple(os.environ.get(name) for name in SETTINGS) == ("77", "7", "true")


def test_calls_of_many_threads_leave_the_settings_as_they_were(store: MlflowStore, bundle: Bundle, tmp_path: Path) -> None:
    before = tuple(os.environ.get(name) for name in SETTINGS)
    registry = MlflowRegistry(store.uri)
    version = store.register("digits")
    registry.attach_bundle(version, bundle.root)
    start = threading.Barrier(6)

    def work(number: int) -> None:
        start.wait()
        for turn in range(3):
            registry.aliases("digits")
            assert files(registry.fetch_bundle(version, tmp_path / f"{number}-{turn}")) == files(bundle.root)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    defaults = ("120", "7", "true")
    assert tuple(os.environ.get(name) for name in SETTINGS) == tuple(b or d for b, d in zip(before, defaults, strict=True))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
