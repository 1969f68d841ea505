"""Archives: one TorchServe `.mar` of one variant, byte-for-byte reproducible, complete in itself.

    <model>-<version>-<variant>-<digest>.mar
        MAR-INF/MANIFEST.json       TorchServe's; follows from the manifest below
        modelway-manifest.json      model, version, variant, backend, options; size and sha256 of each file below
        certificate.json  golden.npz  signature.json  tolerance.json
        model/...                   the exported form
        serving/...                 transforms.json and the files that it names, if the model has any
        modelway_handler.py  modelway_runtime/...   the code that serves it

TorchServe takes a version only from the archive's own `MAR-INF/MANIFEST.json`, and a file cannot contain its own
digest. So `<digest>` is the first 12 hex digits of the sha256 of `modelway-manifest.json`, which in turn has the
digest of every other file: name, engine version and content cannot disagree. The sha256 of the whole file is
recorded beside it, in `Archive.sha256` and in the ledger. A large archive is a directory of that name: `serving.archive_forms`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from registry.bundle import CERTIFICATE, GOLDEN, SIGNATURE, TOLERANCE, Bundle, canonical_json
from registry.certificate import Certificate
from registry.errors import Corrupt, NotFound, UsageError
from registry.names import ModelVersion, check_variant
from registry.signature import Signature
from serving import stored_zip
from serving.archive_forms import archive_sha256, list_files, put_in_place, remove_archive, write_directory
from serving.golden import Golden
from serving.runtime.modelway_runtime.files import DIGEST_CHARS, MANIFEST, MAR_MANIFEST
from serving.runtime.modelway_runtime.gpu import CPU, CUDA, TENSORRT
from serving.stored_zip import Entry, Source

_RUNTIME = Path(__file__).parent / "runtime"
_MODEL_FILES: Mapping[str, str] = {"model.onnx": "onnxruntime", "model.pt": "torchscript", "model.pt2": "aoti"}
_MAX_SMALL_BYTES = 1 << 30
DIRECTORY_ABOVE_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeOptions:
    """How a worker runs the model; part of the archive, so part of its digest.

    Attributes:
        provider: ONNX Runtime's execution provider; the worker refuses to serve with any other.
            `CPUExecutionProvider` means the CPU for TorchScript too, anything else a GPU.
        intra_op_threads: Threads that one run may use.
        max_rows: Rows that one request, and one run, may have.
        check_finite: Answer 500 instead of NaN or infinity.
        batch_size: Requests that a worker runs together, at most; 0 leaves it to the node's setting.
        num_workers: Workers on each node; 0 leaves it to the platform's setting. The workers do not read it: it is here so that
            one digest stands for everything that a tuning decides.
        cuda_graph: Record a run for each size of batch and replay it; for the CUDA provider, and models whose shapes are fixed
            behind the batch dimension.
        tensorrt_fp16: Let TensorRT compute in half precision where it finds it faster; the golden set still has to hold.
    """

    provider: str = CPU
    intra_op_threads: int = 1
    max_rows: int = 1024
    check_finite: bool = True
    batch_size: int = 0
    num_workers: int = 0
    cuda_graph: bool = False
    tensorrt_fp16: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graph and self.provider != CUDA:
            raise UsageError(f"cuda_graph needs the provider {CUDA} (provider={self.provider})")
        if self.tensorrt_fp16 and self.provider != TENSORRT:
            raise UsageError(f"tensorrt_fp16 needs the provider {TENSORRT} (provider={self.provider})")
        if self.batch_size < 0 or self.num_workers < 0:
            raise UsageError(f"runtime options must be 0 or more (batch_size={self.batch_size}, num_workers={self.num_workers})")
        if self.intra_op_threads < 1 or self.max_rows < 1:
            raise UsageError(f"runtime options must be 1 or more (intra_op_threads={self.intra_op_threads}, max_rows={self.max_rows})")


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive on the disk. `engine_version` is what an engine calls it: `<version>-<variant>-<digest>`."""

    name: str
    path: Path
    sha256: str
    engine_version: str


@dataclass(frozen=True, kw_only=True)
class ArchiveContents:
    """What a verified archive says of itself."""

    name: str
    sha256: str
    model_version: ModelVersion
    variant: str
    engine_version: str
    signature: Signature
    certificate: Certificate
    golden: Golden
    options: RuntimeOptions


def archive_name(model: str, engine_version: str) -> str:
    """File name of an archive; the inverse of `ReleaseDraft.engine_version`."""
    return f"{model}-{engine_version}.mar"


def build_archive(
    bundle: Bundle,
    variant: str,
    model_version: ModelVersion,
    into: Path,
    options: RuntimeOptions | None = None,
    *,
    directory_above_bytes: int = DIRECTORY_ABOVE_BYTES,
) -> Archive:
    """Write the archive of one variant into the directory `into`; equal input gives an equal file.

    An archive of that name that is there already is kept if it is intact, and replaced if not.

    Args:
        directory_above_bytes: An archive with more in it is a directory, see `serving.archive_forms`.

    Raises:
        NotFound: If the bundle has no such variant, or the variant no model file that a runtime can run.
        UsageError: If a file's name cannot be in an archive, or a zip would be larger than 4 GiB.
        Corrupt: If the bundle is not of this version, or what was written cannot be read back.
    """
    options = options or RuntimeOptions()
    sources = _sources(bundle, check_variant(variant), model_version)
    measured = {name: _measure(source) for name, source in sources.items()}
    backend = _MODEL_FILES[next(name for name in _MODEL_FILES if f"model/{name}" in sources)]
    manifest = canonical_json(
        {
            "model": model_version.model,
            "version": model_version.version,
            "variant": variant,
            "backend": backend,
            "options": asdict(options),
            "files": measured,
        }
    ).encode()
    engine_version = _engine_version(json.loads(manifest), manifest)
    sources |= {MANIFEST: manifest, MAR_MANIFEST: _mar_manifest(model_version.model, engine_version)}
    name = archive_name(model_version.model, engine_version)
    into.mkdir(parents=True, exist_ok=True)
    path = into / name
    with suppress(NotFound, Corrupt):  # not there, or damaged on the disk: written below
        return Archive(name, path, open_archive(path).sha256, engine_version)
    partial = into / f".{name}.{os.getpid()}.partial"
    try:
        _write(partial, sources, directory=sum(item["bytes"] for item in measured.values()) > directory_above_bytes)
        sha256 = _open(partial, name).sha256  # what is on the disk, not what was meant to be
        put_in_place(partial, path)
    finally:
        remove_archive(partial)
    _sync_directory(into)
    return Archive(name, path, sha256, engine_version)


def open_archive(path: Path, expected_sha256: str | None = None) -> ArchiveContents:
    """Verify every byte of an archive and return what it contains.

    Raises:
        NotFound: There is no such archive.
        Corrupt: It is a link, is not exactly what `build_archive` would write for its contents (a flipped bit,
            a truncated, extra, missing, renamed or repeated entry, a link), is not named by its digest, or is not
            the one that `expected_sha256` says.
    """
    return _open(path, path.name, expected_sha256)


def _open(path: Path, name: str, expected_sha256: str | None = None) -> ArchiveContents:
    sha256 = archive_sha256(path)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise Corrupt(f"wrong digest of {path} ({sha256}, expected {expected_sha256})", "Build the archive again.")
    try:
        if path.is_dir():
            return _read(_Directory(path), name, sha256)
        with path.open("rb") as file:
            return _read(_Zip(file), name, sha256)
    except Corrupt:
        raise
    except Exception as error:  # whatever a broken file makes a parser raise
        raise Corrupt(f"not a readable archive ({path}: {error})", "Build the archive again.") from error


class _Files(Protocol):
    """The files of an archive, in either form."""

    sizes: Mapping[str, int]

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of one file, in pieces."""


class _Zip:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries = {entry.name: entry for entry in stored_zip.read_entries(file)}
        self.sizes: Mapping[str, int] = {name: entry.num_bytes for name, entry in self._entries.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        return stored_zip.iter_content(self._file, self._entries[name])


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.sizes: Mapping[str, int] = {name: int(entry["bytes"]) for name, entry in list_files(root).items()}
        stored_zip.check_names(sorted(self.sizes))

    def chunks(self, name: str) -> Iterator[bytes]:
        return stored_zip.chunks(self._root / name)


def _read(files: _Files, name: str, sha256: str) -> ArchiveContents:
    def content(entry_name: str) -> bytes:
        if files.sizes.get(entry_name, _MAX_SMALL_BYTES + 1) > _MAX_SMALL_BYTES:
            raise Corrupt(f"missing or oversized file in the archive ({entry_name})")
        return b"".join(files.chunks(entry_name))

    raw_manifest = content(MANIFEST)
    manifest: dict[str, Any] = json.loads(raw_manifest)
    if canonical_json(manifest).encode() != raw_manifest:
        raise Corrupt(f"not canonical ({MANIFEST})")
    model_version = ModelVersion(manifest["model"], manifest["version"])
    engine_version = _engine_version(manifest, raw_manifest)
    if name != archive_name(model_version.model, engine_version):
        raise Corrupt(f"the archive is not named by its content ({name}, content {archive_name(model_version.model, engine_version)})")
    if content(MAR_MANIFEST) != _mar_manifest(model_version.model, engine_version):
        raise Corrupt(f"not what the archive's content says ({MAR_MANIFEST})")
    listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
    found = set(files.sizes) - {MANIFEST, MAR_MANIFEST}
    for entry_name in sorted(found ^ set(listed)):
        raise Corrupt(f"{'unexpected' if entry_name in found else 'missing'} file in the archive ({entry_name})")
    for entry_name in sorted(found):
        if _digest(files.chunks(entry_name)) != dict(listed[entry_name]):
            raise Corrupt(f"wrong digest of a file in the archive ({entry_name})")
    signature = Signature.from_json(json.loads(content(SIGNATURE)))
    return ArchiveContents(
        name=name,
        sha256=sha256,
        model_version=model_version,
        variant=check_variant(manifest["variant"]),
        engine_version=engine_version,
        signature=signature,
        certificate=Certificate.from_json(json.loads(content(CERTIFICATE))),
        golden=Golden.from_bytes(signature, content(GOLDEN), json.loads(content(TOLERANCE))),
        options=RuntimeOptions(**manifest["options"]),
    )


def _sources(bundle: Bundle, variant: str, model_version: ModelVersion) -> dict[str, Source]:
    directory = bundle.variant_dir(variant)
    certificate = bundle.certificate(variant)
    if certificate.version != model_version or certificate.variant != variant:
        raise Corrupt(
            f"the bundle's certificate is not of {model_version} {variant} (it is of {certificate.version} {certificate.variant})",
            "Export the version again.",
        )
    model = {f"model/{path.relative_to(directory).as_posix()}": path for path in _files(directory) if path.name != CERTIFICATE}
    bundle.transforms()  # what a worker would refuse is refused here
    kinds = [name for name in _MODEL_FILES if f"model/{name}" in model]
    if len(kinds) != 1:
        raise NotFound(
            f"variant {variant} needs exactly one model file of {', '.join(_MODEL_FILES)} (has {sorted(model)})", "Export it again."
        )
    return {
        **model,
        **{path.relative_to(_RUNTIME).as_posix(): path for path in runtime_files()},
        CERTIFICATE: directory / CERTIFICATE,
        GOLDEN: bundle.root / GOLDEN,
        SIGNATURE: bundle.root / SIGNATURE,
        TOLERANCE: canonical_json(bundle.tolerance(variant)).encode(),
        **{name: bundle.root / name for name in bundle.serving_files()},
    }


def runtime_files() -> tuple[Path, ...]:
    """The source files that travel in every archive."""
    return (_RUNTIME / "modelway_handler.py", *sorted((_RUNTIME / "modelway_runtime").glob("*.py")))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _engine_version(manifest: Mapping[str, Any], raw: bytes) -> str:
    return f"{manifest['version']}-{manifest['variant']}-{hashlib.sha256(raw).hexdigest()[:DIGEST_CHARS]}"


def _mar_manifest(model: str, engine_version: str) -> bytes:
    return canonical_json(
        {
            "createdOn": "01/01/1980 00:00:00",
            "runtime": "python",
            "model": {"modelName": model, "modelVersion": engine_version, "handler": "modelway_handler.py"},
            "archiverVersion": "0.12.0",
        }
    ).encode()


def _measure(source: Source) -> dict[str, Any]:
    return _digest(stored_zip.chunks(source))


def _digest(content: Iterator[bytes]) -> dict[str, Any]:
    digest, num_bytes = hashlib.sha256(), 0
    for chunk in content:
        digest.update(chunk)
        num_bytes += len(chunk)
    return {"bytes": num_bytes, "sha256": digest.hexdigest()}


def _write(path: Path, sources: Mapping[str, Source], *, directory: bool) -> None:
    try:
        if directory:
            write_directory(path, sources)
        else:
            _write_zip(path, sources)
    except ValueError as error:
        raise UsageError(f"these files cannot be an archive ({error})", "Export the version in another form.") from error


def _write_zip(path: Path, sources: Mapping[str, Source]) -> None:
    contents: list[tuple[Entry, Iterator[bytes]]] = [
        (stored_zip.describe(name, source), stored_zip.chunks(source)) for name, source in sorted(sources.items())
    ]
    with path.open("wb") as file:
        for chunk in stored_zip.stream(contents):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
