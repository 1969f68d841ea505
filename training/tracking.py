"""Runs and versions in MLflow. The only file of training that talks to MLflow.

Errors of MLflow and of the network leave here as Modelway's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from registry.errors import NotFound, Unavailable, UsageError
from registry.names import ModelVersion, check_model_name
from registry.signature import NUMPY_DTYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from mlflow import MlflowClient

SOURCE = "model"  # where a run keeps the source of its version
SOURCE_TAG = "modelway.source_sha256"  # tag of a version: digest of its source's manifest
SOURCE_PATH_TAG = "modelway.source_path"  # tag of a version: where its run keeps its source, if not under SOURCE
RUN_TAG = "modelway.run_id"  # tag of a version: the run that made it, once
_PARAM_BATCH = 100  # MLflow's limit per request
_METRIC_BATCH = 1000  # the same
_PARAM_CHARACTERS = 6000  # MLflow's limit per value
_RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_RETRIES = "2"
_PROGRESS_BAR_VARIABLE = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_PRINTING_VARIABLE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_CREATE_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run that is open for logging."""

    tracking: Tracking
    run_id: str
    artifact_uri: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, once; long values are cut at MLflow's limit."""
        from mlflow.entities import Param  # noqa: PLC0415

        entries = [Param(key, str(value)[:_PARAM_CHARACTERS]) for key, value in params.items()]
        with self.tracking.translated():
            for start in range(0, len(entries), _PARAM_BATCH):
                self.tracking.client.log_batch(self.run_id, params=entries[start : start + _PARAM_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag  # noqa: PLC0415

        with self.tracking.translated():
            self.tracking.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record metrics of a step (an epoch)."""
        self.tracking.log_metrics(self.run_id, metrics, step=step)

    def log_directory(self, directory: Path, artifact_path: str | None = None) -> None:
        """Upload the files of a directory."""
        self.tracking.log_directory(self.run_id, directory, artifact_path)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedVersion:
    """A version as the store has it.

    Attributes:
        run_id: The run that made it, or that keeps its source; None if there is none.
    """

    run_id: str | None
    tags: Mapping[str, str]


class Tracking:
    """A client of one MLflow store.

    Args:
        tracking_uri: `sqlite:///...`, `postgresql://...` or the URL of a tracking server.
        artifact_root: Directory or URI under which a new experiment keeps its artifacts; None for the store's default.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: str | None = None) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415  # seconds to import

        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root
        with self.translated():
            self.client: MlflowClient = MlflowClient(tracking_uri, registry_uri=tracking_uri)

    @contextmanager
    def run(self, experiment: str, *, tags: Mapping[str, str]) -> Iterator[Run]:
        """A new run in the experiment (made if need be), closed as FINISHED, FAILED or KILLED."""
        with self.translated():
            created = self.client.create_run(self._experiment_id(experiment), tags=dict(tags))
        run_id = str(created.info.run_id)
        status = "FAILED"
        try:
            yield Run(tracking=self, run_id=run_id, artifact_uri=str(created.info.artifact_uri))
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            # With a server MLflow prints the run's address on standard output, which is for the command's result.
            with self.translated(), _setting(_PRINTING_VARIABLE, "true"):
                self.client.set_terminated(run_id, status)

    def register(
        self, model: str, run: Run, *, source_sha256: str, tags: Mapping[str, str] | None = None, description: str | None = None
    ) -> ModelVersion:
        """Make the run's source a version of the model. Idempotent: a run has one version, however often this is called.

        Also when the answer to the creation is lost: MLflow's client would send the request again and make a second
        version, so its retries are off here, and a failure is followed by a look for the run's version.
        """
        check_model_name(model)
        with self.translated():
            self._create_registered_model(model)
            for attempt in range(1, _CREATE_ATTEMPTS + 1):
                if found := self._version_of(model, run.run_id):
                    return found
                every_tag = {**(tags or {}), RUN_TAG: run.run_id, SOURCE_TAG: source_sha256}
                try:
                    with _setting(_RETRIES_VARIABLE, "0"):
                        created = self.client.create_model_version(
                            model, source=f"{run.artifact_uri}/{SOURCE}", run_id=run.run_id, tags=every_tag, description=description
                        )
                    return ModelVersion(model, int(created.version))
                except Exception:
                    if attempt == _CREATE_ATTEMPTS:
                        raise
        raise AssertionError("unreachable")

    def version_with_tag(self, model: str, key: str, value: str) -> tuple[ModelVersion, dict[str, str]] | None:
        """The model's first version with that tag, and its tags; None if there is none, or no such model."""
        with self.translated():
            found = [
                version
                for version in self.client.search_model_versions(f"name='{check_model_name(model)}'")
                if version.tags.get(key) == value
            ]
        if not found:
            return None
        first = min(found, key=lambda version: int(version.version))
        return ModelVersion(model, int(first.version)), {str(name): str(text) for name, text in first.tags.items()}

    def version(self, model_version: ModelVersion) -> TrackedVersion:
        """The run and the tags of a version. Raises NotFound."""
        with self.translated():
            found = self.client.get_model_version(model_version.model, str(model_version.version))
        tags = {str(name): str(text) for name, text in found.tags.items()}
        return TrackedVersion(run_id=found.run_id or tags.get(RUN_TAG), tags=tags)

    def set_version_tags(self, model_version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version, one after the other in their order. Raises NotFound."""
        with self.translated():
            for key, value in tags.items():
                self.client.set_model_version_tag(model_version.model, str(model_version.version), key, value)

    def download_version(self, model_version: ModelVersion, into: Path) -> Path:
        """Download the model that a version is; returns where its files lie under `into`. Raises NotFound, Unavailable."""
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415

        into.mkdir(parents=True, exist_ok=True)
        with self.translated(), _setting(_PROGRESS_BAR_VARIABLE, "false"):
            where = self.client.get_model_version_download_uri(model_version.model, str(model_version.version))
            try:
                return Path(download_artifacts(where, dst_path=str(into), tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri))
            except ImportError as error:  # MLflow imports the client of a storage when it is asked
                raise Unavailable(f"the version's files cannot be fetched ({where}: no module {error.name})", "Install it.") from error

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record metrics of a run, also of one that has ended. Raises NotFound."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now_ms = int(time.time() * 1000)
        entries = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        with self.translated():
            for start in range(0, len(entries), _METRIC_BATCH):
                self.client.log_batch(run_id, metrics=entries[start : start + _METRIC_BATCH])

    def log_directory(self, run_id: str, directory: Path, artifact_path: str | None = None) -> None:
        """Upload the files of a directory to a run, also to one that has ended. Raises NotFound."""
        with self.translated(), _setting(_PROGRESS_BAR_VARIABLE, "false"):
            self.client.log_artifacts(run_id, str(directory), artifact_path)

    def download(self, run_id: str, artifact_path: str, into: Path) -> Path:
        """Download a directory of a run's artifacts; returns where it lies under `into`. Raises NotFound."""
        into.mkdir(parents=True, exist_ok=True)
        with self.translated():
            if not self.client.list_artifacts(run_id, artifact_path):
                raise NotFound(f"the run has no such artifact ({run_id}: {artifact_path})", "Train the version again.")
            with _setting(_PROGRESS_BAR_VARIABLE, "false"):
                return Path(self.client.download_artifacts(run_id, artifact_path, str(into)))

    def _experiment_id(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            location = None if self._artifact_root is None else f"{self._artifact_root.rstrip('/')}/{name}"
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except Exception:
                experiment = self.client.get_experiment_by_name(name)  # another process was first
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise UsageError(
                f"the experiment is deleted in MLflow ({name})", f"Restore it: mlflow experiments restore -x {experiment.experiment_id}."
            )
        return str(experiment.experiment_id)

    def _create_registered_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self.client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version_of(self, model: str, run_id: str) -> ModelVersion | None:
        found = self.client.search_model_versions(f"name='{model}' and run_id='{run_id}'")
        numbers = sorted(int(version.version) for version in found)
        return ModelVersion(model, numbers[0]) if numbers else None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns errors of MLflow and of its store into Modelway's, within seconds: by itself MLflow tries for four minutes."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        try:
            with _setting(_RETRIES_VARIABLE, os.environ.get(_RETRIES_VARIABLE, _RETRIES)):
                yield
        except MlflowException as error:
            reason = " ".join(str(error.message).split())[:300]
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise NotFound(f"not in MLflow ({reason})") from error
            raise Unavailable(f"MLflow refused or does not answer ({self.tracking_uri}: {reason})", _CHECK) from error
        except (OSError, SQLAlchemyError) as error:  # requests' errors are OSErrors
            raise Unavailable(f"MLflow does not answer ({self.tracking_uri}: {type(error).__name__}: {error})", _CHECK) from error


_CHECK = "Check the tracking URI, and that the server runs."


def write_mlmodel(directory: Path, *, run_id: str, signature: Signature, program: str) -> None:
    """Write MLflow's description of a source directory, so that `mlflow.pytorch.load_model` loads the version's program.

    Args:
        program: Relative path of the torch.export program, in a directory of its own.
    """
    import torch  # noqa: PLC0415
    from mlflow.models import Model, ModelSignature  # noqa: PLC0415
    from mlflow.types import Schema  # noqa: PLC0415
    from mlflow.types import TensorSpec as MlflowTensorSpec  # noqa: PLC0415

    def schema(specs: tuple[TensorSpec, ...]) -> Schema:
        return Schema([MlflowTensorSpec(np.dtype(NUMPY_DTYPES[spec.datatype]), spec.shape, spec.name) for spec in specs])

    described = Model(run_id=run_id, signature=ModelSignature(inputs=schema(signature.inputs), outputs=schema(signature.outputs)))
    described.add_flavor("pytorch", model_data=str(Path(program).parent), pytorch_version=str(torch.__version__), code=None)
    described.save(str(directory / "MLmodel"))


@contextmanager
def _setting(variable: str, value: str) -> Iterator[None]:
    """An MLflow setting for as long as the block lasts: MLflow reads its environment at each call, and offers no argument."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
