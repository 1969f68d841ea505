"""A bundle: the directory with everything about one exported version, and its manifest.

    variants/<variant>/model.onnx | model.pt     the exported form
    variants/<variant>/certificate.json          its proof
    signature.json                               names, dtypes, shapes with the batch dimension free
    golden.npz                                   inputs `in/<name>`, expected outputs `out/<name>`
    tolerance.json                               {variant: {output: {"rtol": float, "atol": float}}}
    profile.json                                 reference statistics of inputs and outputs
    serving/transforms.json, ...                 what is done before and after the model (registry/transforms.py); may be missing
    MANIFEST.json                                size and sha256 of each file; written last

The manifest is what makes a directory a bundle: without it the directory is half written. Verification accepts
exactly the files listed, with the digests listed: nothing missing, nothing extra, no links.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from registry.certificate import Certificate
from registry.errors import Corrupt, NotFound, UsageError
from registry.signature import Signature

if TYPE_CHECKING:
    from registry.transforms import Transforms

MANIFEST = "MANIFEST.json"
SIGNATURE = "signature.json"
GOLDEN = "golden.npz"
TOLERANCE = "tolerance.json"
PROFILE = "profile.json"
VARIANTS = "variants"
SERVING = "serving"
CERTIFICATE = "certificate.json"
_CHUNK_BYTES = 1 << 20
_AGAIN = "Export the version again."

T = TypeVar("T")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes. Raises ValueError for NaN and infinities."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `content` atomically: readers see the old or the new file, also after a crash or a full disk.

    Args:
        mode: Of the new file, less the process's umask; 0600 for what holds a secret.
    """
    # Two writers at once must not write into one file, or either could put the other's first half in place.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_manifest(bundle: Path) -> str:
    """List all files of the directory in MANIFEST.json, durably; return the manifest's sha256."""
    files = {
        name: {"bytes": (bundle / name).stat().st_size, "sha256": sha256_file(bundle / name)}
        for name in sorted(_files(bundle))
        if name != MANIFEST
    }
    content = canonical_json({"files": files}).encode()
    write_durably(bundle / MANIFEST, content)
    return hashlib.sha256(content).hexdigest()


def _files(root: Path) -> Iterator[str]:
    for directory, subdirectories, names in os.walk(root):
        for name in names + [d for d in subdirectories if (Path(directory) / d).is_symlink()]:
            yield (Path(directory) / name).relative_to(root).as_posix()


def verify_tree(root: Path, expected: Mapping[str, Mapping[str, Any]], *, unlisted: frozenset[str]) -> None:
    """Check that `root` holds exactly the files of `expected`, beside those of `unlisted`, each with its digest.

    Args:
        expected: Relative path -> {"bytes": int, "sha256": str}.

    Raises:
        Corrupt: Naming the first file that is missing, extra, a link, truncated or changed.
    """
    found = set(_files(root)) - unlisted
    for name in sorted(found ^ set(expected)):
        raise Corrupt(f"{'unexpected' if name in found else 'missing'} file in {root} ({name})")
    for name, entry in sorted(expected.items()):
        path = root / name
        if path.is_symlink() or not path.is_file():
            raise Corrupt(f"not a plain file in {root} ({name})")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise Corrupt(f"wrong size of a file in {root} ({name}: {size} bytes, manifest says {entry['bytes']})")
        if sha256_file(path) != entry["sha256"]:
            raise Corrupt(f"wrong digest of a file in {root} ({name})")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk."""

    root: Path
    sha256: str

    @classmethod
    def open(cls, root: Path, *, expected_sha256: str | None = None) -> Bundle:
        """Verify every file of the directory and return the bundle.

        Raises:
            NotFound: There is no manifest: not a bundle, or one that was never finished.
            Corrupt: A file is not what the manifest says, or the manifest not what `expected_sha256` says.
        """
        manifest = root / MANIFEST
        if not manifest.is_file() or manifest.is_symlink():
            raise NotFound(f"no {MANIFEST} in {root}", _AGAIN)
        content = manifest.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise Corrupt(f"wrong digest of {manifest} ({sha256}, expected {expected_sha256})", _AGAIN)
        try:
            listed = dict(json.loads(content)["files"])
            files = {str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in listed.items()}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt(f"unreadable manifest ({manifest}: {error})", _AGAIN) from error
        verify_tree(root, files, unlisted=frozenset({MANIFEST}))
        return cls(root, sha256)

    def variants(self) -> tuple[str, ...]:
        """Names of its variants, sorted. What has no certificate is none, as an empty directory that no manifest can list."""
        return tuple(sorted(path.parent.name for path in (self.root / VARIANTS).glob(f"*/{CERTIFICATE}")))

    def variant_dir(self, variant: str) -> Path:
        """Directory of one variant. Raises NotFound, naming the ones that exist."""
        if variant not in self.variants():
            raise NotFound(f"no such variant ({variant})", f"Exported are: {', '.join(self.variants()) or 'none'}.")
        return self.root / VARIANTS / variant

    def certificate(self, variant: str) -> Certificate:
        """The certificate of one variant. Raises NotFound, Corrupt."""
        return _read(self.variant_dir(variant) / CERTIFICATE, Certificate.from_json)

    def certificate_sha256(self, variant: str) -> str:
        """Digest of the certificate file of one variant. Raises NotFound."""
        return sha256_file(self.variant_dir(variant) / CERTIFICATE)

    def signature(self) -> Signature:
        """The model's signature. Raises Corrupt."""
        return _read(self.root / SIGNATURE, Signature.from_json)

    def tolerance(self, variant: str) -> dict[str, dict[str, float]]:
        """Output name -> {"rtol", "atol"} that the golden set must meet for this variant. Raises Corrupt if it has none."""
        return _read(self.root / TOLERANCE, lambda data: {str(name): dict(limits) for name, limits in data[variant].items()})

    def serving_files(self) -> tuple[str, ...]:
        """Files of the transforms that travel with the model, as `serving/<name>`, sorted; none if it has none."""
        return tuple(sorted(name for name in _files(self.root) if name.startswith(f"{SERVING}/")))

    def transforms(self) -> Transforms | None:
        """What is done to bodies and answers; None if nothing is. Raises Corrupt."""
        if not (self.root / SERVING).is_dir():
            return None
        from registry.transforms import read_transforms  # noqa: PLC0415  (pydantic, which most commands do without)

        try:
            return read_transforms(self.root / SERVING, self.signature())
        except UsageError as error:
            raise Corrupt(f"unreadable transforms of a bundle ({self.root / SERVING}: {error})", _AGAIN) from error


def _read(file: Path, parse: Callable[[Any], T]) -> T:
    """A file whose digest is right, and which may still have been written by another program than ours."""
    try:
        return parse(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise Corrupt(f"unreadable file of a bundle ({file}: {type(error).__name__}: {error})", _AGAIN) from error
