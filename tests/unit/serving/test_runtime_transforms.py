"""Transforms from the bundle through the archive into a worker that has proved them, and what must not serve."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.bundle import Bundle, write_manifest
from registry.errors import Corrupt
from registry.names import ModelVersion
from serving.archive import Archive, build_archive, open_archive
from serving.runtime.modelway_runtime import files, transforms, worker
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.tensors import Spec
from support.runtime_echo import PREDICTIONS, ask
from support.transform_bundles import (
    IMAGE_TRANSFORMS,
    TEXT_TRANSFORMS,
    VARIANT,
    make_image_bundle,
    make_text_bundle,
    picture,
)

VERSION = ModelVersion("m", 1)
MAKERS: dict[str, Callable[..., Bundle]] = {"image": make_image_bundle, "text": make_text_bundle}


def archive_of(tmp_path: Path, kind: str) -> Archive:
    return build_archive(MAKERS[kind](tmp_path / "bundle", version=VERSION), VARIANT, VERSION, tmp_path)


def unpacked(archive: Archive, into: Path) -> Path:
    with zipfile.ZipFile(archive.path) as content:
        content.extractall(into)
    return into


@pytest.mark.parametrize(("kind", "names"), [("image", {"labels.txt"}), ("text", {"tokenizer.json"})])
def test_the_directory_travels_in_the_archive_and_a_changed_file_is_refused(tmp_path: Path, kind: str, names: set[str]) -> None:
    archive = archive_of(tmp_path, kind)
    root = unpacked(archive, tmp_path / "root")
    assert {path.name for path in (root / "serving").iterdir()} == {"transforms.json", *names}
    assert open_archive(archive.path).engine_version == archive.engine_version
    for name in ("transforms.json", *names):
        file = root / "serving" / name
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(LoadError, match=f"wrong digest of a file in the archive .serving/{name}"):
            files.check(root, archive.engine_version)
        content = bytearray(archive.path.read_bytes())
        content[content.index(whole) + len(whole) // 2] ^= 1
        (tmp_path / "changed").mkdir(exist_ok=True)
        (tmp_path / "changed" / archive.name).write_bytes(content)
        with pytest.raises(Corrupt):
            open_archive(tmp_path / "changed" / archive.name)
        file.unlink()
        with pytest.raises(LoadError, match=f"missing file in the archive .serving/{name}"):
            files.check(root, archive.engine_version)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "headers", "body", "answer"),
    [
        ("image", {}, picture((255, 51, 0)), {"red": 1.0, "green": pytest.approx(0.2)}),
        ("text", {"content-type": "text/plain"}, b"good bad bad", {"bad": pytest.approx(0.731059), "good": pytest.approx(0.268941)}),
    ],
)
def test_a_worker_answers_with_labels(tmp_path: Path, kind: str, headers: dict[str, str], body: bytes, answer: Any) -> None:
    archive = archive_of(tmp_path, kind)
    core = worker.load(unpacked(archive, tmp_path / "root"), archive.engine_version)
    assert json.loads(ask(core, body, {**PREDICTIONS, **headers}).body) == answer


def test_the_golden_row_is_asked_with_labels_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, "image")
    asked: list[Any] = []
    handle = Core.handle

    def remembered(core: Core, requests: Any) -> Any:
        asked.extend(json.loads(body) for _, body in requests)
        return handle(core, requests)

    monkeypatch.setattr(Core, "handle", remembered)
    worker.load(unpacked(archive, tmp_path / "root"), archive.engine_version)
    assert [request.get("outputs") for request in asked] == [None, [{"name": "logits", "parameters": {"classification": 1}}]]
    broken = "serving.runtime.modelway_runtime.labels.Labels.classification"
    monkeypatch.setattr(broken, _raises)
    with pytest.raises(LoadError, match="golden set: a request with its first row is answered 500"):
        worker.load(unpacked(archive, tmp_path / "again"), archive.engine_version)


def _raises(*_: object) -> None:
    raise ValueError


def test_a_worker_tries_its_transforms_before_it_serves(tmp_path: Path) -> None:
    useless = {**IMAGE_TRANSFORMS, "inputs": [{**IMAGE, "max_pixels": 1}]}
    archive = build_archive(make_image_bundle(tmp_path / "bundle", version=VERSION, transforms=useless), VARIANT, VERSION, tmp_path)
    with pytest.raises(LoadError, match="a small image/jpeg body is refused"):
        worker.load(unpacked(archive, tmp_path / "root"), archive.engine_version)


def test_an_archive_is_not_built_of_transforms_that_do_not_fit(tmp_path: Path) -> None:
    wrong = {**IMAGE_TRANSFORMS, "inputs": [{"kind": "image", "input": "image", "size": [9, 9]}]}
    bundle = make_image_bundle(tmp_path / "bundle", version=VERSION, transforms=wrong)
    with pytest.raises(Corrupt, match=r"NCHW RGB of size \[9, 9\]"):
        build_archive(bundle, VARIANT, VERSION, tmp_path)
    assert not list(tmp_path.glob("*.mar"))


def test_links_in_the_directory_are_refused_with_the_bundle(tmp_path: Path) -> None:
    bundle = make_image_bundle(tmp_path / "bundle", version=VERSION)
    (tmp_path / "elsewhere").write_text("red\ngreen\nblue\n")
    (bundle.root / "serving" / "labels.txt").unlink()
    (bundle.root / "serving" / "labels.txt").symlink_to(tmp_path / "elsewhere")
    write_manifest(bundle.root)
    with pytest.raises(Corrupt, match="not a plain file"):
        Bundle.open(bundle.root)


# --- a worker that was given something else

IMAGE_SPECS = (Spec("image", "FP32", (-1, 3, 8, 8)),), (Spec("logits", "FP32", (-1, 3)),)
IMAGE = IMAGE_TRANSFORMS["inputs"][0]
LABELS = {"output": "logits", "labels": ["a", "b", "c"]}


def declared(root: Path, document: Any) -> transforms.Declared:
    (root / "serving").mkdir(exist_ok=True)
    (root / "serving" / "transforms.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return transforms.load(root, *IMAGE_SPECS)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "unreadable transforms.json .JSONDecodeError"),
        ([], "unreadable transforms.json .AttributeError"),
        ({"inputs": [{"kind": "sound"}]}, "unknown kind of input .sound"),
        ({"inputs": [{"kind": "image", "size": [8, 8]}]}, "unreadable transforms.json .KeyError"),
        ({"inputs": [{**IMAGE, "input": "pixels"}]}, "no tensor of the name pixels"),
        ({"inputs": [{**IMAGE, "size": [8]}]}, "unreadable transforms.json .ValueError"),
        ({"inputs": [{**IMAGE, "interpolation": "none"}]}, "unreadable transforms.json .KeyError"),
        (TEXT_TRANSFORMS, "the tokenizer cannot be used .tokenizer.json"),
        ({"outputs": [{**LABELS, "output": "x"}]}, "no tensor of the name x"),
        ({"outputs": [{**LABELS, "labels": ["a"]}]}, "has 1 labels"),
        ({"outputs": [{**LABELS, "labels": "missing.txt"}]}, "unreadable transforms.json .FileNotFoundError"),
        ({"outputs": [{**LABELS, "activation": "relu"}]}, "unreadable transforms.json .KeyError"),
    ],
)
def test_what_a_worker_cannot_use_must_not_serve(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        declared(tmp_path, document)


def test_what_makes_other_inputs_than_the_signature_says_must_not_serve(tmp_path: Path) -> None:
    wrong = declared(tmp_path, {"inputs": [{**IMAGE, "size": [9, 9]}]})
    with pytest.raises(LoadError, match=r"a body of image/jpeg becomes image float32\[1, 3, 9, 9\], the signature says FP32"):
        transforms.prove(_info(wrong), wrong)
    small = declared(tmp_path, {"inputs": [{**IMAGE, "max_pixels": 1}]})
    with pytest.raises(LoadError, match=r"a small image/jpeg body is refused .the image is 4x3 pixels"):
        transforms.prove(_info(small), small)


def _info(made: transforms.Declared) -> Any:
    return worker.ModelInfo("m", "1", *IMAGE_SPECS, max_rows=8, transforms=made.transforms)


@pytest.mark.parametrize(("library", "document"), [("PIL.Image", IMAGE_TRANSFORMS), ("tokenizers", TEXT_TRANSFORMS)])
def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, document: Any) -> None:
    found = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == library:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(LoadError, match=f"needs a library that is not installed here .{library}"):
        declared(tmp_path, document)


def test_without_a_directory_nothing_is_imported_and_nothing_declared(tmp_path: Path) -> None:
    assert transforms.load(tmp_path, *IMAGE_SPECS) == transforms.Declared()
