"""A version in MLflow that Modelway did not make gets a source, so that it can be exported like any other."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from registry.bundle import sha256_file, write_manifest
from registry.errors import Refused, UsageError
from registry.names import ModelVersion
from training.importing.mlflow_files import MlflowModel, read_mlflow_model
from training.importing.request import Adaptation, ImportRequest
from training.importing.sample import Sample, infer_task, read_sample
from training.importing.story import KIND_TAG, ORIGIN_TAG, write_source_of
from training.recipe import ExportConfig, Task
from training.tracking import RUN_TAG, SOURCE, SOURCE_PATH_TAG, SOURCE_TAG, Tracking

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptedVersion:
    """What an adoption made.

    Attributes:
        already: Whether the version had a source.
        run_id: The run that keeps its source and will keep its bundle.
    """

    model_version: ModelVersion
    already: bool
    kind: str
    run_id: str
    source_path: str
    source_sha256: str


def adopt_version(
    model_version: ModelVersion,
    *,
    tracking: Tracking,
    sample: Path | None = None,
    task: Task | None = None,
    export: ExportConfig | None = None,
    adaptation: Adaptation | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> AdoptedVersion:
    """Make a source from an MLflow PyTorch version and keep it with the version. Idempotent: a version that has one keeps it.

    The source goes to the version's run, or to a new run for a version that no run made; the version's tags say where, the
    digest last. The version itself is not changed.

    Args:
        sample: Rows instead of the version's input example.

    Raises:
        NotFound: No such version.
        UsageError: Not a PyTorch model, without signature or example, or the model does not answer it.
        Refused: It is pickled, and that was not allowed.
        Unavailable: MLflow does not answer.
    """
    say = progress or (lambda line: None)
    info = tracking.version(model_version)
    if SOURCE_TAG in info.tags:
        assert info.run_id is not None  # whoever tagged it knew the run
        return AdoptedVersion(
            model_version=model_version,
            already=True,
            kind=info.tags.get(KIND_TAG, "trained"),
            run_id=info.run_id,
            source_path=info.tags.get(SOURCE_PATH_TAG, SOURCE),
            source_sha256=info.tags[SOURCE_TAG],
        )
    say(f"{model_version} was not made by Modelway: making its source from its MLflow model")
    with tempfile.TemporaryDirectory(prefix="modelway-adopt-") as directory, _pickle_named(model_version):
        scratch = Path(directory)
        model = read_mlflow_model(tracking.download_version(model_version, scratch / "version"), need_sample=sample is None)
        rows = read_sample(sample) if sample is not None else model.sample
        assert rows is not None
        if len(rows) < 2:  # the same row twice shows the batch, which one row does not
            rows = dataclasses.replace(rows, inputs={name: np.repeat(array, 2, axis=0) for name, array in rows.inputs.items()})
        request = _request(model_version, model, rows, scratch, export=export, adaptation=adaptation, allow_pickle=allow_pickle)
        source = scratch / "source"
        brought, signature = write_source_of(
            request,
            rows,
            task or infer_task(rows.labels),
            source,
            say=say,
            origin={"mlflow_version": str(model_version), "file": model.file.name, "sha256": sha256_file(model.file)},
            code=model.code,
        )
        digest = write_manifest(source)
        path = f"sources/{digest[:16]}"
        run_id = _keep(model_version, info.run_id, source, path, tracking)
    tracking.set_version_tags(
        model_version,
        {
            KIND_TAG: brought.kind,
            ORIGIN_TAG: f"models:/{model_version}",
            SOURCE_PATH_TAG: path,
            **({} if info.run_id else {RUN_TAG: run_id}),
            SOURCE_TAG: digest,  # last: it says that all the others are there
        },
    )
    say(f"{model_version} takes {', '.join(map(str, signature.inputs))} and answers {', '.join(map(str, signature.outputs))}")
    return AdoptedVersion(
        model_version=model_version, already=False, kind=brought.kind, run_id=run_id, source_path=path, source_sha256=digest
    )


@contextmanager
def _pickle_named(model_version: ModelVersion) -> Iterator[None]:
    """Refusals of pickles, with the command that allows them for a version."""
    try:
        yield
    except Refused as error:
        raise Refused(
            f"{model_version}: {error.what}",
            f"Log it again with serialization_format='pt2', or, if you know where it comes from: "
            f"modelway import models:/{model_version} --allow-pickle.",
        ) from error


def _request(
    model_version: ModelVersion,
    model: MlflowModel,
    rows: Sample,
    scratch: Path,
    *,
    export: ExportConfig | None,
    adaptation: Adaptation | None,
    allow_pickle: bool,
) -> ImportRequest:
    np.savez(scratch / "sample.npz", allow_pickle=False, **rows.inputs)
    config = export or ExportConfig()
    if not config.dynamic:
        config = dataclasses.replace(config, dynamic=dict(model.dynamic))
    try:
        return ImportRequest(
            file=model.file,
            name=model_version.model,
            sample=scratch / "sample.npz",
            export=config,
            adaptation=adaptation or Adaptation(),
            allow_pickle=allow_pickle,
        )
    except UsageError as error:
        raise UsageError(f"{model_version}: {error.what}", error.next_step) from error


def _keep(model_version: ModelVersion, run_id: str | None, source: Path, path: str, tracking: Tracking) -> str:
    if run_id is not None:
        tracking.log_directory(run_id, source, path)
        return run_id
    tags = {"mlflow.runName": f"adopt-{model_version.model}-{model_version.version}", "mlflow.source.name": "modelway export"}
    with tracking.run(model_version.model, tags=tags) as run:
        run.log_directory(source, path)
        return run.run_id
