"""Bundles: a directory is one only if it is exactly what its manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.bundle import CERTIFICATE, MANIFEST, SIGNATURE, TOLERANCE, Bundle, canonical_json, sha256_file, write_durably, write_manifest
from registry.errors import Corrupt, NotFound
from registry.names import ModelVersion
from support.bundles import SIGNATURE_OF_TESTS, TOLERANCE_OF_TESTS, make_bundle

VERSION = ModelVersion("digits", 1)
MODEL = "variants/onnx-fp32/model.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", version=VERSION)


def test_a_bundle_says_what_is_in_it(bundle: Bundle):
    assert bundle.variants() == ("onnx-fp32",)
    assert bundle.signature() == SIGNATURE_OF_TESTS
    assert bundle.tolerance("onnx-fp32") == TOLERANCE_OF_TESTS
    assert bundle.certificate("onnx-fp32").version == VERSION
    assert bundle.certificate_sha256("onnx-fp32") == sha256_file(bundle.root / "variants/onnx-fp32" / CERTIFICATE)
    assert bundle.sha256 == hashlib.sha256((bundle.root / MANIFEST).read_bytes()).hexdigest()
    assert Bundle.open(bundle.root, expected_sha256=bundle.sha256) == bundle


def test_the_manifest_lists_every_file_but_itself(bundle: Bundle):
    listed = json.loads((bundle.root / MANIFEST).read_text())["files"]
    present = {path.relative_to(bundle.root).as_posix(): path.stat().st_size for path in bundle.root.rglob("*") if path.is_file()}
    del present[MANIFEST]
    assert {name: entry["bytes"] for name, entry in listed.items()} == present
    assert write_manifest(bundle.root) == bundle.sha256  # equal content, equal digest


def test_an_unknown_variant_names_those_that_exist(bundle: Bundle):
    with pytest.raises(NotFound, match=r"no such variant \(onnx-fp16\)\. Exported are: onnx-fp32\."):
        bundle.certificate("onnx-fp16")


def test_what_has_no_certificate_is_no_variant(bundle: Bundle):
    (bundle.root / "variants/empty").mkdir()
    assert Bundle.open(bundle.root).variants() == ("onnx-fp32",)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [append, truncate, flip, link, pipe, directory, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [MODEL, SIGNATURE, f"variants/onnx-fp32/{CERTIFICATE}"])
def test_p15_a_damaged_file_is_named(bundle: Bundle, name: str, damage: Callable[[Path], None]):
    damage(bundle.root / name)
    with pytest.raises(Corrupt, match=rf"file .*({name}|elsewhere)"):
        Bundle.open(bundle.root)


@pytest.mark.parametrize("name", ["extra", "variants/onnx-fp32/.hidden", "variants/extra/model.onnx"])
def test_p15_an_extra_file_is_named(bundle: Bundle, name: str):
    (bundle.root / name).parent.mkdir(exist_ok=True)
    (bundle.root / name).write_bytes(b"")
    with pytest.raises(Corrupt, match=rf"unexpected file .*\({name}\)"):
        Bundle.open(bundle.root)


def test_p15_a_linked_directory_is_not_followed(bundle: Bundle, tmp_path: Path):
    (bundle.root / "variants").rename(tmp_path / "elsewhere")
    (bundle.root / "variants").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Corrupt):
        Bundle.open(bundle.root)


def test_p15_a_manifest_that_was_written_anew_is_not_the_expected_one(bundle: Bundle):
    flip(bundle.root / MODEL)
    write_manifest(bundle.root)
    Bundle.open(bundle.root)
    with pytest.raises(Corrupt, match=r"wrong digest of .*MANIFEST"):
        Bundle.open(bundle.root, expected_sha256=bundle.sha256)


def test_a_directory_without_manifest_is_half_written(bundle: Bundle):
    (bundle.root / MANIFEST).rename(bundle.root / "manifest")
    with pytest.raises(NotFound, match=f"no {MANIFEST}"):
        Bundle.open(bundle.root)
    (bundle.root / MANIFEST).symlink_to("manifest")
    with pytest.raises(NotFound, match=f"no {MANIFEST}"):
        Bundle.open(bundle.root)


MANIFESTS = {
    "no json": "{",
    "not utf-8": b"\xff",
    "a list": "[]",
    "no files": "{}",
    "files are a number": '{"files":1}',
    "an entry is a number": '{"files":{"a":1}}',
    "an entry without digest": '{"files":{"a":{"bytes":1}}}',
    "a size is a word": '{"files":{"a":{"bytes":"x","sha256":""}}}',
    "deep": "[" * 100_000,
    "outside": '{"files":{"../outside":{"bytes":0,"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}}',
    "nothing": '{"files":{}}',
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_manifest_of_another_program_is_refused(bundle: Bundle, content: str | bytes):
    (bundle.root.parent / "outside").write_bytes(b"")
    (bundle.root / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Corrupt):
        Bundle.open(bundle.root)


READS: dict[str, Callable[[Bundle], object]] = {
    f"variants/onnx-fp32/{CERTIFICATE}": lambda bundle: bundle.certificate("onnx-fp32"),
    SIGNATURE: Bundle.signature,
    TOLERANCE: lambda bundle: bundle.tolerance("onnx-fp32"),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b"1", b"\xff", b'{"onnx-fp32":1}', b"[" * 100_000], ids=lambda c: repr(c)[:12]
)
def test_a_file_with_the_right_digest_may_still_be_unreadable(bundle: Bundle, name: str, content: bytes):
    (bundle.root / name).write_bytes(content)
    write_manifest(bundle.root)
    with pytest.raises(Corrupt, match=rf"unreadable file of a bundle .*{name}.*Export the version again"):
        READS[name](Bundle.open(bundle.root))


def test_canonical_json_gives_equal_bytes_for_equal_values():
    assert canonical_json({"b": [1, 2.5], "a": "ä"}) == canonical_json({"a": "ä", "b": [1, 2.5]}) == '{"a":"ä","b":[1,2.5]}'
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(float("nan"))


def test_a_durable_write_replaces_the_whole_file(tmp_path: Path):
    file = tmp_path / "file"
    write_durably(file, b"old and long")
    write_durably(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_durable_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    write_durably(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_durable_writes_at_once_never_mix(tmp_path: Path):
    file, start = tmp_path / "file", threading.Barrier(4)
    contents = [bytes([ord("a") + i]) * (1 << 16) for i in range(4)]

    def write(content: bytes) -> None:
        start.wait()
        for _ in range(20):
            write_durably(file, content)
            assert file.read_bytes() in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    assert list(tmp_path.iterdir()) == [file]
