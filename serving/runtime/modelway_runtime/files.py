"""The archive's own list of files: checked before anything of the model is loaded.

`modelway-manifest.json` lists every file of the archive but itself and TorchServe's `MAR-INF/MANIFEST.json`. The digest
of the list is part of the engine version, so the list itself is checked by the name it is served under.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import LoadError

MANIFEST = "modelway-manifest.json"
GOLDEN = "golden.npz"
SIGNATURE = "signature.json"
TOLERANCE = "tolerance.json"
MAR_MANIFEST = "MAR-INF/MANIFEST.json"
DIGEST_CHARS = 12
_CHUNK_BYTES = 1 << 20


def engine_version(root: Path) -> str:
    """What an unpacked archive must be called, by its manifest. Raises LoadError."""
    return _manifest(root)[1]


def options(root: Path) -> dict[str, Any]:
    """How an unpacked archive wants to be run, by its manifest. Raises LoadError."""
    return dict(_manifest(root)[0]["options"])


def check(root: Path, engine_version: str) -> dict[str, Any]:
    """Check every file of an unpacked archive; return the manifest.

    Args:
        engine_version: What the engine was told: `<version>-<variant>-<digest of the manifest>`.

    Raises:
        LoadError: Naming the first file that is missing, extra, a link, truncated or changed.
    """
    manifest, expected = _manifest(root)
    files = dict(manifest["files"])
    if engine_version != expected:
        raise LoadError(f"wrong digest of {MANIFEST} (engine version {engine_version}, content {expected})")
    found = _files(root) - {MANIFEST, MAR_MANIFEST}
    for name in sorted(found ^ set(files)):
        raise LoadError(f"{'unexpected' if name in found else 'missing'} file in the archive ({name})")
    for name, entry in sorted(files.items()):
        path = root / name
        if path.is_symlink() or not path.is_file():
            raise LoadError(f"not a plain file in the archive ({name})")
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise LoadError(f"wrong digest of a file in the archive ({name})")
    return manifest


def _manifest(root: Path) -> tuple[dict[str, Any], str]:
    """The manifest, and the engine version that follows from it."""
    try:
        content = (root / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        dict(manifest["files"])
        digest = hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]
        return manifest, f"{manifest['version']}-{manifest['variant']}-{digest}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"unreadable {MANIFEST} ({error})") from error


def _files(root: Path) -> set[str]:
    names = set()
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]  # Python's own, where it may write
        links = [name for name in subdirectories if (Path(directory) / name).is_symlink()]
        names |= {(Path(directory) / name).relative_to(root).as_posix() for name in files + links}
    return names


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
