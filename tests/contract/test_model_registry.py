"""One contract for every model registry: in memory, MLflow on its store, MLflow through its server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Protocol

import pytest

from registry.bundle import MANIFEST, SIGNATURE, Bundle
from registry.errors import Corrupt, NotFound, UsageError
from registry.mlflow_registry import MlflowRegistry
from registry.names import ModelVersion
from registry.ports import ModelRegistry
from support.bundles import make_bundle
from support.memory_registry import MemoryRegistry
from support.mlflow_store import MLFLOW_WARNINGS, MlflowStore, new_store, serve

_numbers = itertools.count(1)


class Place(Protocol):
    """A registry, and what its users do behind its back."""

    registry: ModelRegistry

    def register_model(self, model: str) -> None: ...

    def register(self, model: str, *, with_run: bool = True) -> ModelVersion: ...

    def damage(self, version: ModelVersion, file: str, content: bytes | None) -> None: ...

    def damage_document(self, version: ModelVersion, name: str, content: bytes) -> None: ...


class ModelRegistryContract:
    @pytest.fixture
    def model(self) -> str:
        return f"digits-{next(_numbers)}"  # a store may be shared by several tests

    @pytest.fixture
    def bundle(self, tmp_path: Path, model: str) -> Bundle:
        return make_bundle(tmp_path / "bundle", version=ModelVersion(model, 1), weights_seed=1)

    def test_versions_come_oldest_first_beyond_nine(self, place: Place, model: str) -> None:
        made = [place.register(model) for _ in range(11)]
        assert [info.model_version for info in place.registry.versions(model)] == made
        assert [version.version for version in made] == list(range(1, 12))

    def test_a_version_says_what_is_known_of_it(self, place: Place, model: str) -> None:
        info = place.registry.version(place.register(model))
        assert info.model_version == ModelVersion(model, 1)
        assert info.run_id
        assert (info.bundle, info.bundle_sha256) == (None, None)
        assert abs(info.created_at - datetime.now(UTC)) < timedelta(minutes=5)

    def test_models_are_listed(self, place: Place, model: str) -> None:
        place.register_model(f"{model}-b")
        place.register_model(f"{model}-a")
        names = place.registry.registered_models()
        assert list(names) == sorted(names)
        assert {f"{model}-a", f"{model}-b"} <= set(names)

    def test_an_unknown_model_names_those_that_exist(self, place: Place, model: str) -> None:
        place.register(model)
        for call in (lambda: place.registry.versions("iris"), lambda: place.registry.version(ModelVersion("iris", 1))):
            with pytest.raises(NotFound, match=rf"^no model iris\. Models are .*{model}"):
                call()

    def test_an_unknown_version_names_those_that_exist(self, place: Place, model: str, bundle: Bundle, tmp_path: Path) -> None:
        place.register(model)
        place.register(model)
        ghost = ModelVersion(model, 7)
        for call in (
            lambda: place.registry.version(ghost),
            lambda: place.registry.set_alias(ghost, "production"),
            lambda: place.registry.set_tag(ghost, "key", "value"),
            lambda: place.registry.attach_bundle(ghost, bundle.root),
            lambda: place.registry.fetch_bundle(ghost, tmp_path / "fetched"),
        ):
            with pytest.raises(NotFound, match=f"^no version 7 of {model}; versions are 1, 2"):
                call()
        assert not (tmp_path / "fetched").exists()
        assert place.registry.aliases(model) == {}

    def test_a_model_may_have_no_version(self, place: Place, model: str) -> None:
        place.register_model(model)
        assert list(place.registry.versions(model)) == []
        with pytest.raises(NotFound, match=f"no version 1 of {model}; it has no version"):
            place.registry.version(ModelVersion(model, 1))

    def test_names_that_no_model_can_have_are_refused(self, place: Place) -> None:
        for name in ("", "a/b", "x' or name='y"):
            with pytest.raises(UsageError, match="invalid model name"):
                place.registry.versions(name)

    def test_aliases_move(self, place: Place, model: str) -> None:
        first, second = place.register(model), place.register(model)
        assert place.registry.aliases(model) == {}
        place.registry.set_alias(first, "production")
        place.registry.set_alias(first, "staging")
        place.registry.set_alias(second, "production")
        place.registry.set_alias(second, "production")
        assert place.registry.aliases(model) == {"production": 2, "staging": 1}

    def test_an_unknown_model_has_no_aliases(self, place: Place) -> None:
        assert place.registry.aliases("iris") == {}

    def test_an_alias_must_be_a_channel(self, place: Place, model: str) -> None:
        version = place.register(model)
        with pytest.raises(UsageError, match="invalid channel"):
            place.registry.set_alias(version, "latest")

    def test_tags_are_kept_and_overwritten(self, place: Place, model: str) -> None:
        first, second = place.register(model), place.register(model)
        for value in ("one", "two", "two"):
            place.registry.set_tag(first, "modelway.refused", value)
        assert place.registry.version(first).tags["modelway.refused"] == "two"
        assert "modelway.refused" not in place.registry.version(second).tags

    def test_a_bundle_comes_back_as_it_was(self, place: Place, model: str, bundle: Bundle, tmp_path: Path) -> None:
        version = place.register(model)
        attached = place.registry.attach_bundle(version, bundle.root)
        assert attached.bundle_sha256 == bundle.sha256
        assert attached == place.registry.version(version) == place.registry.versions(model)[0]
        fetched = place.registry.fetch_bundle(version, tmp_path / "new" / "fetched")
        assert fetched == tmp_path / "new" / "fetched"
        assert files(fetched) == files(bundle.root)
        assert [path.name for path in fetched.parent.iterdir()] == ["fetched"]

    def test_attaching_again_is_harmless(self, place: Place, model: str, bundle: Bundle) -> None:
        version = place.register(model)
        first = place.registry.attach_bundle(version, bundle.root)
        assert place.registry.attach_bundle(version, bundle.root) == first

    def test_a_new_bundle_takes_the_place_of_the_old(self, place: Place, model: str, bundle: Bundle, tmp_path: Path) -> None:
        version = place.register(model)
        old = place.registry.attach_bundle(version, bundle.root)
        newer = make_bundle(tmp_path / "newer", version=version, weights_seed=2)
        new = place.registry.attach_bundle(version, newer.root)
        assert new.bundle != old.bundle
        assert files(place.registry.fetch_bundle(version, tmp_path / "fetched")) == files(newer.root)

    def test_a_damaged_bundle_is_not_taken(self, place: Place, model: str, bundle: Bundle, tmp_path: Path) -> None:
        version = place.register(model)
        good = place.registry.attach_bundle(version, bundle.root)
        damaged = make_bundle(tmp_path / "damaged", version=version, weights_seed=3).root
        (damaged / SIGNATURE).write_text("{}")
        with pytest.raises(Corrupt):
            place.registry.attach_bundle(version, damaged)
        (damaged / MANIFEST).unlink()
        with pytest.raises(NotFound, match=MANIFEST):
            place.registry.attach_bundle(version, damaged)
        assert place.registry.version(version) == good

    def test_a_version_without_a_bundle_was_never_exported(self, place: Place, model: str, tmp_path: Path) -> None:
        version = place.register(model)
        with pytest.raises(NotFound, match=rf"{version} was never exported.*modelway export {version}"):
            place.registry.fetch_bundle(version, tmp_path / "fetched")

    def test_a_bundle_is_fetched_into_a_new_directory_only(self, place: Place, model: str, bundle: Bundle, tmp_path: Path) -> None:
        version = place.register(model)
        place.registry.attach_bundle(version, bundle.root)
        (tmp_path / "fetched").mkdir()
        with pytest.raises(UsageError, match="exists already"):
            place.registry.fetch_bundle(version, tmp_path / "fetched")

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(("signature.json", b"{}"), id="truncated"),
            pytest.param(("variants/onnx-fp32/model.onnx", None), id="missing"),
            pytest.param(("variants/onnx-fp32/extra.data", b"more"), id="extra"),
            pytest.param((MANIFEST, b'{"files":{}}'), id="other manifest"),
            pytest.param((MANIFEST, None), id="no manifest"),
        ],
    )
    def test_a_damaged_store_is_noticed(
        self, place: Place, model: str, bundle: Bundle, tmp_path: Path, damage: tuple[str, bytes | None]
    ) -> None:
        version = place.register(model)
        place.registry.attach_bundle(version, bundle.root)
        place.damage(version, *damage)
        with pytest.raises(Corrupt, match=f"stored bundle of {version}"):
            place.registry.fetch_bundle(version, tmp_path / "fetched")
        assert sorted(path.name for path in tmp_path.iterdir() if "fetched" in path.name) == []

    def test_attaching_again_repairs_the_store(self, place: Place, model: str, bundle: Bundle, tmp_path: Path) -> None:
        version = place.register(model)
        place.registry.attach_bundle(version, bundle.root)
        place.damage(version, SIGNATURE, None)
        place.registry.attach_bundle(version, bundle.root)
        assert files(place.registry.fetch_bundle(version, tmp_path / "fetched")) == files(bundle.root)

    def test_a_version_that_no_run_made_has_no_place_for_a_bundle(self, place: Place, model: str, bundle: Bundle) -> None:
        version = place.register(model, with_run=False)
        assert place.registry.version(version).run_id is None
        with pytest.raises(UsageError, match=f"{version} was made by no run"):
            place.registry.attach_bundle(version, bundle.root)

    def test_a_document_comes_back_as_it_was_and_can_be_replaced_and_taken_away(self, place: Place, model: str, bundle: Bundle) -> None:
        version, other = place.register(model), place.register(model)
        place.registry.attach_bundle(version, bundle.root)
        assert place.registry.document(version, "tuning.onnx-fp32") is None
        for content in (b'{"a":1}', b'{"a":2}', b'{"a":1}'):
            place.registry.attach_document(version, "tuning.onnx-fp32", content)
            assert place.registry.document(version, "tuning.onnx-fp32") == content
        assert place.registry.document(version, "tuning.torchscript-fp32") is None
        assert place.registry.document(other, "tuning.onnx-fp32") is None
        assert place.registry.version(version).bundle_sha256 == bundle.sha256  # which stays what it was
        for _ in range(2):
            place.registry.attach_document(version, "tuning.onnx-fp32", None)
            assert place.registry.document(version, "tuning.onnx-fp32") is None

    def test_a_damaged_document_is_noticed(self, place: Place, model: str) -> None:
        version = place.register(model)
        place.registry.attach_document(version, "tuning.onnx-fp32", b'{"a":1}')
        place.damage_document(version, "tuning.onnx-fp32", b'{"a":2}')
        with pytest.raises(Corrupt, match=f"a stored document of {version} is not what it was"):
            place.registry.document(version, "tuning.onnx-fp32")

    def test_a_document_needs_a_version_a_run_and_a_name(self, place: Place, model: str) -> None:
        version, without_run = place.register(model), place.register(model, with_run=False)
        with pytest.raises(UsageError, match=f"{without_run} was made by no run"):
            place.registry.attach_document(without_run, "tuning", b"{}")
        for call in (lambda v: place.registry.attach_document(v, "tuning", b"{}"), lambda v: place.registry.document(v, "tuning")):
            with pytest.raises(NotFound):
                call(ModelVersion(model, 99))
        for name in ("", "../x", "A", "x/y", "@sha256:"):
            with pytest.raises(UsageError, match="invalid name of a document"):
                place.registry.attach_document(version, name, b"{}")


def files(root: Path) -> dict[str, bytes]:
    """Relative path -> content."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class MemoryPlace:
    def __init__(self) -> None:
        self.registry = MemoryRegistry()

    def register_model(self, model: str) -> None:
        self.registry.register_model(model)

    def register(self, model: str, *, with_run: bool = True) -> ModelVersion:
        return self.registry.register(model, run_id="a run" if with_run else None)

    def damage(self, version: ModelVersion, file: str, content: bytes | None) -> None:
        self.registry.damage(version, file, content)

    def damage_document(self, version: ModelVersion, name: str, content: bytes) -> None:
        self.registry.damage_document(version, name, content)


@dataclass(frozen=True)
class MlflowPlace:
    registry: MlflowRegistry
    store: MlflowStore

    def register_model(self, model: str) -> None:
        self.store.register_model(model)

    def register(self, model: str, *, with_run: bool = True) -> ModelVersion:
        return self.store.register(model, with_run=with_run)

    def damage(self, version: ModelVersion, file: str, content: bytes | None) -> None:
        info = self.registry.version(version)
        (directory,) = self.store.artifacts.glob(f"**/{info.run_id}/artifacts/{info.bundle}")
        (directory / file).unlink(missing_ok=True)
        if content is not None:
            (directory / file).write_bytes(content)

    def damage_document(self, version: ModelVersion, name: str, content: bytes) -> None:
        (file,) = self.store.artifacts.glob(f"**/{self.registry.version(version).run_id}/artifacts/documents/{name}/*.json")
        file.write_bytes(content)


class TestMemoryRegistry(ModelRegistryContract):
    @pytest.fixture
    def place(self) -> MemoryPlace:
        return MemoryPlace()


class TestMlflowStore(ModelRegistryContract):
    pytestmark: ClassVar = [pytest.mark.integration, *MLFLOW_WARNINGS]

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> MlflowPlace:
        store = new_store(tmp_path_factory.mktemp("mlflow") / "store")
        return MlflowPlace(MlflowRegistry(store.uri), store)


class TestMlflowServer(ModelRegistryContract):
    pytestmark: ClassVar = [pytest.mark.integration, *MLFLOW_WARNINGS]

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowPlace]:
        with serve(new_store(tmp_path_factory.mktemp("mlflow") / "store")) as server:
            yield MlflowPlace(MlflowRegistry(server.url), server.store)
