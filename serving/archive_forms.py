"""Archives on a disk, in either form: a file, which is a stored zip, or a directory that holds the same files as they are.

A directory is what a large model gets: nothing is copied to unpack it, a worker maps its weights from where they lie, and a
zip without zip64 ends at 4 GiB. TorchServe takes a directory in its model store by the name that the file would have. Names,
manifests and checks are the same in both forms. The digest of a directory is that of the list of its files:

    sha256(canonical_json({"model/model.onnx.data": {"bytes": 419430400, "sha256": "..."}, ...}))
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from registry.bundle import canonical_json, sha256_file
from registry.errors import Corrupt, NotFound
from serving import stored_zip
from serving.stored_zip import Source

Listing = dict[str, dict[str, Any]]


def archive_sha256(path: Path) -> str:
    """Digest of an archive, every byte of it read.

    Raises:
        NotFound: There is nothing.
        Corrupt: It is a link, or a directory with something in it that is neither a plain file nor a directory with files.
    """
    if path.is_symlink():
        raise Corrupt(f"an archive must be a plain file or a directory ({path} is a link)")
    if path.is_dir():
        return listing_sha256(list_files(path))
    if not path.is_file():
        raise NotFound(f"no such archive ({path})")
    return sha256_file(path)


def has_digest(path: Path, sha256: str) -> bool:
    """Whether an archive is there and is that one. Never raises for what lies there."""
    try:
        return archive_sha256(path) == sha256
    except (NotFound, Corrupt):
        return False


def list_files(root: Path) -> Listing:
    """Relative path -> size and sha256 of every file of a directory. Raises Corrupt for what no archive has."""
    found: Listing = {}
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        found[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return found


def listing_sha256(listing: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of a directory with these files."""
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def write_directory(root: Path, sources: Mapping[str, Source]) -> None:
    """Write the files of an archive into the new directory `root`, durably. Raises ValueError for a name that no archive may have."""
    stored_zip.check_names(sorted(sources))
    root.mkdir()
    for name, source in sources.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for chunk in stored_zip.chunks(source):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    _sync_directories(root)


def copy_archive(source: Path, target: Path) -> None:
    """Copy an archive of either form to where nothing is yet, durably. Raises FileNotFoundError, Corrupt, OSError.

    A copy, not a hard link: damage to one of the two must leave the other whole.
    """
    if source.is_dir():
        write_directory(target, {path.relative_to(source).as_posix(): path for path in _walk(source)})
        return
    with source.open("rb") as original, target.open("xb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def unpack_archive(path: Path, into: Path) -> None:
    """Write the files of a verified archive into the new directory `into`."""
    if path.is_dir():
        shutil.copytree(path, into)
        return
    with zipfile.ZipFile(path) as packed:
        packed.extractall(into)


def put_in_place(partial: Path, target: Path) -> None:
    """Move a complete archive to its name. A file replaces a file at once; what else lies there is removed first."""
    if partial.is_dir() or target.is_dir():
        remove_archive(target)
    partial.replace(target)


def remove_archive(path: Path) -> None:
    """Delete an archive of either form, or a link by that name; nothing happens if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _walk(root: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(root, onerror=_raise):
        here = Path(directory)
        if not subdirectories and not names:
            raise Corrupt(f"an empty directory in an archive ({here})", "Build the archive again.")
        for name in (*subdirectories, *names):
            mode = (here / name).lstat().st_mode
            if not (stat.S_ISREG(mode) if name in names else stat.S_ISDIR(mode)):
                raise Corrupt(f"not a plain file in an archive ({here / name})", "Build the archive again.")
        yield from (here / name for name in names)


def _raise(error: OSError) -> None:
    raise Corrupt(f"an archive cannot be read ({error})", "Build the archive again.") from error


def _sync_directories(root: Path) -> None:
    for directory, _, _ in os.walk(root):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
