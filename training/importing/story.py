"""From a model's file to a registered version: the story of an import, top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from registry.bundle import canonical_json, sha256_file, write_manifest
from registry.errors import UsageError
from registry.names import ModelVersion
from registry.signature import Signature
from registry.transforms import read_transforms
from training.data.batches import Array
from training.evaluate import predict
from training.importing.brought import Brought
from training.importing.onnx_file import bring_onnx
from training.importing.program_file import bring_pickled_module, bring_program
from training.importing.request import ImportRequest
from training.importing.sample import Sample, infer_task, read_sample, renamed
from training.importing.torchscript_file import bring_torchscript, is_torchscript
from training.importing.weights_file import bring_weights
from training.interface import infer_signature
from training.recipe import ExportConfig, Task
from training.source.imported import ImportedModel, open_imported, write_imported
from training.source.serving import copy_serving
from training.tracking import SOURCE, Tracking

IMPORT_TAG = "modelway.import_sha256"  # tag of a version: digest of all that its import was given
ORIGIN_TAG = "modelway.imported_from"  # tag of a version: the file that it came from, with its digest
KIND_TAG = "modelway.kind"
_EXAMPLE_ROWS = 4

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedVersion:
    """What an import made.

    Attributes:
        already: Whether an earlier import of the same files with the same options had made the version.
        kind: In which form the model is kept.
        signature: Its inputs and outputs; None if `already`.
        labelled: Whether the sample has labels.
    """

    model_version: ModelVersion
    already: bool
    kind: str
    signature: Signature | None
    labelled: bool


def import_model(request: ImportRequest, *, tracking: Tracking, progress: Progress | None = None) -> ImportedVersion:
    """Make a model's file the next version of a registered model. Idempotent: the same import again finds its version.

    Raises:
        UsageError: The file, the sample and the options do not fit together; names what does not.
        Refused: Only unpickling can read the file, and that was not allowed.
        Unavailable: MLflow does not answer.
    """
    say = progress or (lambda line: None)
    sample = read_sample(request.sample, labels_from=request.labels_from)
    task = request.task or infer_task(sample.labels)
    digest = import_digest(request, sample, task)
    if (found := tracking.version_with_tag(request.name, IMPORT_TAG, digest)) is not None:
        version, tags = found
        return ImportedVersion(
            model_version=version, already=True, kind=tags.get(KIND_TAG, "?"), signature=None, labelled=sample.labels is not None
        )
    with tempfile.TemporaryDirectory(prefix="modelway-import-") as scratch:
        source = Path(scratch) / SOURCE
        brought, signature = write_source_of(request, sample, task, source, say=say)
        manifest_sha256 = write_manifest(source)
        origin = f"{request.file.name}@sha256:{sha256_file(request.file)}"
        tags = {IMPORT_TAG: digest, ORIGIN_TAG: origin, KIND_TAG: brought.kind}
        with tracking.run(
            request.name, tags={"mlflow.runName": f"import-{request.file.name}", "mlflow.source.name": "modelway import"}
        ) as run:
            run.log_params(_params(request, brought, task))
            run.log_directory(source, SOURCE)
            model_version = tracking.register(
                request.name,
                run,
                source_sha256=manifest_sha256,
                tags=tags,
                description=f"Imported from {request.file.name} ({brought.kind}), sha256 {sha256_file(request.file)}.",
            )
    return ImportedVersion(
        model_version=model_version, already=False, kind=brought.kind, signature=signature, labelled=sample.labels is not None
    )


def write_source_of(
    request: ImportRequest,
    sample: Sample,
    task: Task,
    directory: Path,
    *,
    say: Progress,
    origin: Mapping[str, Any] | None = None,
    code: Path | None = None,
) -> tuple[Brought, Signature]:
    """Bring the file into the new source directory, describe it, and prove that it answers the sample. The manifest is not written."""
    directory.mkdir(parents=True)
    brought = bring(request, sample, directory, code=code)
    where = origin or {"file": request.file.name, "sha256": sha256_file(request.file)}
    # ONNX outputs were renamed in the graph, and name themselves.
    dynamic = renamed(request.export.dynamic, sample, tuple(brought.inputs))
    export = dataclasses.replace(request.export, outputs=brought.outputs, dynamic=dynamic, serving=None)
    imported = ImportedModel(kind=brought.kind, task=task, export=export, model=brought.model, origin={**where, **brought.facts})
    write_imported(directory, imported, sample=brought.inputs, labels=sample.labels)
    signature = prove(directory, say=say)
    if request.export.serving is not None:
        read_transforms(Path(request.export.serving), signature)
        copy_serving(Path(request.export.serving), directory)
    return brought, signature


def bring(request: ImportRequest, sample: Sample, into: Path, *, code: Path | None = None) -> Brought:
    """By the form of the file.

    Args:
        code: Directory with Python code that a pickled module needs.

    Raises:
        UsageError: See the file of that form.
        Refused: It is pickled, and that was not allowed.
    """
    suffix = request.file.suffix.lower()
    if request.model is not None and suffix not in {".onnx", ".pt2"}:
        return bring_weights(request, request.model, sample, into)
    if request.model is not None:
        raise UsageError(f"--class-path goes with weights, not with a whole model ({request.file.name})", "Leave it out.")
    if suffix == ".onnx":
        return bring_onnx(request, sample, into)
    if suffix == ".pt2":
        return bring_program(request, sample, into)
    if suffix == ".safetensors":
        raise UsageError(f"weights need the class that they belong to ({request.file.name})", "Give --class-path package.module.Class.")
    if is_torchscript(request.file):
        return bring_torchscript(request, sample, into)
    if _is_weights(request.file):
        raise UsageError(f"the file holds weights, not a model ({request.file.name})", "Give --class-path package.module.Class.")
    return bring_pickled_module(request, sample, into, code=code)


def prove(directory: Path, *, say: Progress) -> Signature:
    """Ask the model of a source its sample as an export will. Raises UsageError if it does not answer, or not row by row."""
    source = open_imported(directory)
    rows = {name: array[:_EXAMPLE_ROWS] for name, array in source.sample.items()}

    def ask(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return predict(source.model, inputs, outputs=source.export.outputs, task=source.task)
        except UsageError:
            raise
        except Exception as error:  # the model is anyone's, and its engine raises what it likes
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"the model does not answer the sample ({shapes}: {type(error).__name__}: {reason})",
                "Check the sample's shapes and types, and that the model takes any number of rows.",
            ) from error

    outputs = ask(rows)
    again = ask(rows)
    changed = [name for name, array in outputs.items() if not np.array_equal(array, again[name], equal_nan=True)]
    if changed:
        say(f"warning: the same rows asked twice were answered differently ({changed[0]}): a model with a state or with randomness fails")
    signature = infer_signature(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in rows.items()},
        {name: torch.from_numpy(array) for name, array in outputs.items()},
        dynamic=source.export.dynamic,
        ask=lambda inputs: {name: torch.from_numpy(array) for name, array in ask({n: t.numpy() for n, t in inputs.items()}).items()},
    )
    ask({name: array[:1] for name, array in rows.items()})
    return signature


def import_digest(request: ImportRequest, sample: Sample, task: Task) -> str:
    """Hex sha256 of all that makes the import what it is: files and options, not their places or times."""
    files = [request.file, *sorted(request.file.parent.glob(f"{request.file.name}?*"))]  # external data lie beside it
    serving = Path(request.export.serving) if request.export.serving is not None else None
    described = {
        "files": {path.name: sha256_file(path) for path in files if path.is_file()},
        "sample": sample.digest(),
        "task": task,
        "export": _plain(dataclasses.replace(request.export, serving=None)),
        "adaptation": _plain(request.adaptation),
        "class": None if request.model is None else _plain(request.model),
        "serving": {}
        if serving is None
        else {str(p.relative_to(serving)): sha256_file(p) for p in sorted(serving.rglob("*")) if p.is_file()},
    }
    return hashlib.sha256(canonical_json(described).encode()).hexdigest()


def _is_weights(file: Path) -> bool:
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except Exception:  # a pickle, or no file of torch's at all
        return False
    return True


def _plain(config: Any) -> Any:
    return dataclasses.asdict(config)


def _params(request: ImportRequest, brought: Brought, task: Task) -> dict[str, Any]:
    options: ExportConfig = request.export
    given = {"task": task, "kind": brought.kind, "file": request.file.name, "dynamic": dict(options.dynamic), "outputs": options.outputs}
    return {**given, **{f"adaptation.{name}": value for name, value in _plain(request.adaptation).items() if value}, **brought.facts}
