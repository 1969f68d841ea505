"""An archive that is a directory: the same name, the same contents, the same refusals as the zip of the same bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from registry.bundle import Bundle
from registry.errors import Corrupt, NotFound, UsageError
from registry.names import ModelVersion
from serving.archive import Archive, RuntimeOptions, build_archive, open_archive
from serving.archive_cache import ArchiveCache
from serving.archive_forms import archive_sha256, copy_archive, unpack_archive
from serving.runtime.modelway_runtime import worker
from serving.runtime.modelway_runtime.errors import LoadError
from serving.torchserve import TorchServeConfig, TorchServeNode, prepare
from support.bundles import make_bundle
from support.control_plane import InMemoryPlane

VERSION = ModelVersion("digits", 3)
VARIANT = "onnx-fp32"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", version=VERSION, weights_seed=3)


@pytest.fixture(scope="module")
def good(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return build_archive(bundle, VARIANT, VERSION, tmp_path_factory.mktemp("good"), directory_above_bytes=0)


@pytest.fixture
def copy(good: Archive, tmp_path: Path) -> Path:
    target = tmp_path / good.name
    copy_archive(good.path, target)
    return target


def test_both_forms_have_one_name_and_one_content(bundle: Bundle, good: Archive, tmp_path: Path) -> None:
    packed = build_archive(bundle, VARIANT, VERSION, tmp_path)
    assert packed.path.is_file()
    assert good.path.is_dir()
    assert (packed.name, packed.engine_version) == (good.name, good.engine_version)
    assert packed.sha256 != good.sha256
    assert replace(open_archive(packed.path), golden=None) == replace(open_archive(good.path), golden=None, sha256=packed.sha256)
    unpack_archive(packed.path, tmp_path / "unpacked")
    assert archive_sha256(tmp_path / "unpacked") == good.sha256


def test_the_digest_does_not_depend_on_times_or_permissions(copy: Path, good: Archive) -> None:
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert open_archive(copy, good.sha256).sha256 == good.sha256


def test_one_that_is_there_is_kept_and_a_broken_one_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    def build() -> Archive:
        return build_archive(bundle, VARIANT, VERSION, tmp_path, directory_above_bytes=0)

    first = build()
    inode = first.path.stat().st_ino
    assert build() == first
    assert first.path.stat().st_ino == inode
    (first.path / "golden.npz").unlink()
    assert build() == first
    assert open_archive(first.path, first.sha256)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_what_cannot_be_written_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    named = tmp_path / "b"
    shutil.copytree(bundle.root, named)
    (named / "variants" / VARIANT / "weights of the model").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a plain relative name"):
        build_archive(Bundle(named, ""), VARIANT, VERSION, tmp_path / "out", directory_above_bytes=0)
    assert not list((tmp_path / "out").iterdir())


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    elsewhere = path.parents[1] / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


CHANGES: dict[str, Callable[[Path], object]] = {
    "bit": lambda root: _flip(root / "model" / "model.onnx"),
    "bit of the manifest": lambda root: _flip(root / "modelway-manifest.json"),
    "bit of the engine's manifest": lambda root: _flip(root / "MAR-INF" / "MANIFEST.json"),
    "truncated": lambda root: os.truncate(root / "model" / "model.onnx", 10),
    "emptied": lambda root: os.truncate(root / "certificate.json", 0),
    "missing": lambda root: (root / "golden.npz").unlink(),
    "renamed": lambda root: (root / "golden.npz").rename(root / "golden2.npz"),
    "extra": lambda root: (root / "extra.py").write_bytes(b""),
    "extra in a directory": lambda root: (root / "modelway_runtime" / "extra.py").write_bytes(b""),
    "empty directory": lambda root: (root / "extra").mkdir(),
    "link": lambda root: _link(root / "golden.npz"),
    "link to a directory": lambda root: _link(root / "model"),
    "a pipe": lambda root: os.mkfifo(root / "pipe"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_directory_is_refused(copy: Path, good: Archive, change: str) -> None:
    CHANGES[change](copy)
    with pytest.raises(Corrupt):
        open_archive(copy)
    if change not in ("empty directory", "bit of the engine's manifest"):  # neither is read by a worker
        with pytest.raises(LoadError):
            worker.load(copy, good.engine_version)


@pytest.mark.parametrize("file", sorted(["model/model.onnx", "modelway-manifest.json", "signature.json", "modelway_handler.py"]))
def test_every_file_counts_in_the_digest(copy: Path, good: Archive, file: str) -> None:
    _flip(copy / file)
    assert archive_sha256(copy) != good.sha256


def test_a_renamed_or_linked_directory_is_refused(copy: Path, good: Archive, tmp_path: Path) -> None:
    renamed = copy.with_name(copy.name.replace("digits-3", "digits-4"))
    copy.rename(renamed)
    with pytest.raises(Corrupt, match="not named by its content"):
        open_archive(renamed)
    link = tmp_path / good.name
    link.symlink_to(good.path, target_is_directory=True)
    with pytest.raises(Corrupt, match="is a link"):
        open_archive(link)
    with pytest.raises(Corrupt, match="wrong digest"):
        open_archive(good.path, "0" * 64)


def test_the_worker_answers_from_it(good: Archive) -> None:
    assert worker.load(good.path, good.engine_version) is not None


def test_the_cache_builds_a_damaged_one_again(tmp_path: Path) -> None:
    plane = InMemoryPlane(tmp_path)
    plane.register(1)
    release = plane.promote(1).release
    cache = ArchiveCache(tmp_path / "cache", plane.registry, RuntimeOptions(), directory_above_bytes=0)
    built = cache.build(release.model_version, release.variant).archive
    assert built.path.is_dir()
    as_released = replace(release, archive=built.name, archive_sha256=built.sha256, options=None)
    assert cache.ensure(as_released) == built.path
    _flip(built.path / "model" / "model.onnx")
    assert archive_sha256(cache.ensure(as_released)) == built.sha256
    shutil.rmtree(built.path)
    assert archive_sha256(cache.ensure(as_released)) == built.sha256


def test_a_node_keeps_a_copy_of_its_own(good: Archive, tmp_path: Path) -> None:
    config = TorchServeConfig(name="n", directory=tmp_path / "n", socket_dir=tmp_path / "s", log_file=tmp_path / "n.log")
    prepare(config)
    node, stored = TorchServeNode(config), config.model_store / good.name
    with pytest.raises(Corrupt, match="wrong digest"):
        node.store(good.path, "0" * 64)
    assert not list(config.model_store.iterdir())
    node.store(good.path, good.sha256)
    assert archive_sha256(stored) == good.sha256
    (stored / "model" / "model.onnx").write_bytes(b"damaged")
    assert archive_sha256(good.path) == good.sha256  # a copy, not a second name
    node.store(good.path, good.sha256)
    assert archive_sha256(stored) == good.sha256
    with pytest.raises(NotFound):
        node.store(tmp_path / "nothing" / good.name, "1" * 64)
    (config.model_store / f".{good.name}.1.partial").mkdir()  # of a process that was killed
    prepare(config)
    assert [path.name for path in config.model_store.iterdir()] == [good.name]
