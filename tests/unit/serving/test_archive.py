from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from registry.bundle import Bundle, sha256_file
from registry.errors import Corrupt, NotFound, UsageError
from registry.names import ModelVersion
from registry.release import ReleaseDraft
from serving.archive import RuntimeOptions, archive_name, build_archive, open_archive
from support.bundles import make_bundle

VERSION = ModelVersion("digits", 3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", version=VERSION, weights_seed=3)


@pytest.fixture(scope="module")
def good(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(bundle, "onnx-fp32", VERSION, tmp_path_factory.mktemp("good")).path


def refuses(path: Path) -> bool:
    try:
        open_archive(path)
    except (Corrupt, NotFound):
        return True
    return False


def test_the_same_bundle_gives_the_same_bytes_everywhere(bundle: Bundle, good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copied-bundle"
    shutil.copytree(bundle.root, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    again = build_archive(Bundle.open(copy), "onnx-fp32", VERSION, tmp_path / "other", RuntimeOptions())
    assert again.name == good.name
    assert again.path.read_bytes() == good.read_bytes()
    assert again.sha256 == sha256_file(good)


def test_another_process_with_another_hash_seed_gives_the_same_bytes(bundle: Bundle, good: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from registry.bundle import Bundle; from registry.names import ModelVersion;"
        "from serving.archive import build_archive;"
        f"bundle, into = Bundle.open(Path({str(bundle.root)!r})), Path({str(tmp_path)!r});"
        "print(build_archive(bundle, 'onnx-fp32', ModelVersion('digits', 3), into).sha256)"
    )
    root = str(Path(__file__).parents[3])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == sha256_file(good)


def test_name_engine_version_and_content_agree(good: Path) -> None:
    contents = open_archive(good, sha256_file(good))
    assert good.name == archive_name("digits", contents.engine_version)
    assert contents.engine_version.startswith("3-onnx-fp32-")
    with zipfile.ZipFile(good) as files:
        assert files.testzip() is None
        mar = json.loads(files.read("MAR-INF/MANIFEST.json"))
    assert (mar["model"]["modelName"], mar["model"]["modelVersion"]) == ("digits", contents.engine_version)
    draft = object.__new__(ReleaseDraft)
    object.__setattr__(draft, "model", "digits")
    object.__setattr__(draft, "archive", good.name)
    assert draft.engine_version == contents.engine_version


def test_what_was_put_in_comes_out(good: Path, bundle: Bundle) -> None:
    contents = open_archive(good)
    assert contents.model_version == VERSION
    assert contents.variant == "onnx-fp32"
    assert contents.signature == bundle.signature()
    assert contents.golden.tolerance == bundle.tolerance("onnx-fp32")
    assert contents.golden.data.num_rows == 8
    assert contents.certificate == bundle.certificate("onnx-fp32")
    assert contents.options == RuntimeOptions()


def test_options_are_part_of_the_digest(bundle: Bundle, good: Path, tmp_path: Path) -> None:
    other = build_archive(bundle, "onnx-fp32", VERSION, tmp_path, replace(RuntimeOptions(), max_rows=7))
    assert other.name != good.name
    assert open_archive(other.path).options.max_rows == 7


def test_an_archive_that_is_there_is_kept_and_a_broken_one_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    first = build_archive(bundle, "onnx-fp32", VERSION, tmp_path)
    inode = first.path.stat().st_ino
    assert build_archive(bundle, "onnx-fp32", VERSION, tmp_path) == first
    assert first.path.stat().st_ino == inode
    first.path.write_bytes(first.path.read_bytes()[:-1])
    assert build_archive(bundle, "onnx-fp32", VERSION, tmp_path) == first
    assert open_archive(first.path, first.sha256)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_a_bundle_of_another_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="certificate is not of digits/4 onnx-fp32"):
        build_archive(bundle, "onnx-fp32", ModelVersion("digits", 4), tmp_path)


@pytest.mark.parametrize(("variant", "error"), [("onnx-int8-static", NotFound), ("../x", UsageError)])
def test_a_variant_that_is_not_there(bundle: Bundle, tmp_path: Path, variant: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        build_archive(bundle, variant, VERSION, tmp_path)


def test_what_cannot_be_written_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "b"
    shutil.copytree(bundle.root, copy)
    (copy / "variants" / "onnx-fp32" / "weights of the model").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a plain relative name"):
        build_archive(Bundle(copy, ""), "onnx-fp32", VERSION, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("options", [{"intra_op_threads": 0}, {"max_rows": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        RuntimeOptions(**options)  # type: ignore[arg-type]


def test_one_flipped_bit_anywhere_is_refused(good: Path, tmp_path: Path) -> None:
    """P15. Every byte of the headers and the directory, and a sample of those of the contents."""
    content = good.read_bytes()
    directory_at = int.from_bytes(content[-6:-2], "little")
    rng = random.Random(15)
    positions = [*range(200), *range(directory_at, len(content)), *rng.sample(range(len(content)), 300)]
    target = tmp_path / good.name
    accepted = []
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        target.write_bytes(changed)
        if not refuses(target):
            accepted.append(position)
    assert len(positions) > 1000
    assert accepted == []


def test_a_truncated_or_extended_file_is_refused(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    target = tmp_path / good.name
    rng = random.Random(16)
    lengths = [0, 1, 21, 22, len(content) - 1, *rng.sample(range(len(content)), 50)]
    for changed in [*(content[:length] for length in lengths), content + b"\0", b"\0" + content, content + content]:
        target.write_bytes(changed)
        assert refuses(target)


def rewritten(good: Path, target: Path, change: str) -> None:
    """The archive written again by `zipfile`, with one entry changed."""
    attributes: dict[str, dict[str, object]] = {
        "renamed": {"filename": "golden2.npz"},
        "path": {"filename": "../golden.npz"},
        "absolute": {"filename": "/golden.npz"},
        "link": {"external_attr": 0o120777 << 16},
        "permissions": {"external_attr": 0o100777 << 16},
        "compressed": {"compress_type": zipfile.ZIP_DEFLATED},
        "time": {"date_time": (2020, 1, 1, 0, 0, 0)},
        "entry comment": {"comment": b"hello"},
    }
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(target, "w") as copy:
        for info in source.infolist():
            data = source.read(info)
            if info.filename == "golden.npz":
                if change == "missing":
                    continue
                if change == "content":
                    data = data[:-1] + bytes([data[-1] ^ 1])
                for name, value in attributes.get(change, {}).items():
                    setattr(info, name, value)
            if info.filename == "MAR-INF/MANIFEST.json" and change == "engine's manifest":
                data = data.replace(b"modelway_handler.py", b"something_else.py12")
            copy.writestr(info, data)
        if change == "comment":
            copy.comment = b"hello"
        if change in ("extra.py", "directory/"):
            info = zipfile.ZipInfo(f"zzz{change}")
            info.external_attr = 0o100644 << 16
            copy.writestr(info, b"")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("missing", "missing file in the archive"),
        ("renamed", "missing file in the archive .golden.npz"),
        ("path", "not a plain relative name"),
        ("absolute", "not a plain relative name"),
        ("link", "not those of an archive"),
        ("permissions", "not those of an archive"),
        ("compressed", "not a readable archive"),
        ("time", "not those of an archive"),
        ("entry comment", "not a readable archive"),
        ("content", "wrong digest of a file in the archive .golden.npz"),
        ("engine's manifest", "not what the archive's content says"),
        ("comment", "no end record at the end"),
        ("extra.py", "unexpected file in the archive .zzzextra.py"),
        ("directory/", "not a plain relative name"),
    ],
)
def test_a_changed_entry_is_refused(good: Path, tmp_path: Path, change: str, reason: str) -> None:
    target = tmp_path / good.name
    rewritten(good, target, change)
    with pytest.raises(Corrupt, match=reason):
        open_archive(target)


def test_zipfile_itself_writes_what_is_accepted(good: Path, tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    target = tmp_path / good.name
    rewritten(good, target, "nothing")
    assert open_archive(target).sha256 == sha256_file(good)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_repeated_entry_is_refused(good: Path, tmp_path: Path) -> None:
    target = tmp_path / good.name
    shutil.copyfile(good, target)
    with zipfile.ZipFile(target, "a") as copy:
        copy.writestr("golden.npz", b"")
    with pytest.raises(Corrupt):
        open_archive(target)


def test_a_renamed_or_linked_file_is_refused(good: Path, tmp_path: Path) -> None:
    renamed = tmp_path / good.name.replace("digits-3", "digits-4")
    shutil.copyfile(good, renamed)
    with pytest.raises(Corrupt, match="not named by its content"):
        open_archive(renamed)
    link = tmp_path / good.name
    link.symlink_to(good)
    with pytest.raises(Corrupt, match="is a link"):
        open_archive(link)
    with pytest.raises(NotFound):
        open_archive(tmp_path / "nothing.mar")


def test_another_intact_archive_is_refused_by_its_digest(good: Path) -> None:
    with pytest.raises(Corrupt, match="wrong digest"):
        open_archive(good, "0" * 64)
