"""Real MLflow stores and servers for tests.

    store = new_store(tmp_path / "mlflow")          # a copy of a store that is made once per test run (7 s)
    version = store.register("digits")              # a run and a version that it made: digits/1
    with serve(store) as server:                    # a real `mlflow server` on a port of its own (5 s)
        MlflowRegistry(server.url)

A test module that uses it names MLFLOW_WARNINGS: `pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]`.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from registry.names import ModelVersion
from support.polling import wait_until
from support.ports import free_port

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow 3.17 says of itself on SQLAlchemy 2.1; nothing that its user could change.
MLFLOW_WARNINGS = (
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3.Connection:ResourceWarning"),
)


@dataclass(frozen=True, kw_only=True)
class MlflowStore:
    """A SQLite store with its artifacts.

    Attributes:
        uri: Its tracking URI.
        artifacts: The directory under which every artifact lies, whoever stored it.
        served_at: The server's address, if its runs are to be made through one.
    """

    uri: str
    artifacts: Path
    served_at: str | None = None
    _cache: dict[str, object] = field(default_factory=dict)

    @property
    def client(self) -> MlflowClient:
        """A client of the store, or of the server."""
        from mlflow import MlflowClient

        uri = self.served_at or self.uri
        if "client" not in self._cache:
            self._cache["client"] = MlflowClient(uri, registry_uri=uri)
        client = self._cache["client"]
        assert isinstance(client, MlflowClient)
        return client

    def register_model(self, model: str) -> None:
        """Make a model without versions, if there is none."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def register(self, model: str, *, with_run: bool = True, artifact_location: str | None = None) -> ModelVersion:
        """A new version of the model, with a run that made it. Artifacts lie in the store unless a location is given."""
        self.register_model(model)
        if not with_run:
            created = self.client.create_model_version(model, source="s3://elsewhere/model")
            return ModelVersion(model, int(created.version))
        run = self.client.create_run(self._experiment_id(artifact_location))
        created = self.client.create_model_version(model, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
        return ModelVersion(model, int(created.version))

    def _experiment_id(self, artifact_location: str | None) -> str:
        name = artifact_location or "tests"
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        here = None if self.served_at is not None else self.artifacts.as_uri()  # a server hands out mlflow-artifacts:
        return str(self.client.create_experiment(name, artifact_location=artifact_location or here))


@functools.cache
def _template() -> Path:
    """An empty store's database; making one takes 7 s, copying it a millisecond."""
    from mlflow import MlflowClient

    directory = Path(tempfile.mkdtemp(prefix="modelway-mlflow-template-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    MlflowClient(f"sqlite:///{directory}/mlflow.db").search_experiments()
    return directory / "mlflow.db"


def new_store(directory: Path) -> MlflowStore:
    """An empty store in the new directory."""
    artifacts = directory / "artifacts"
    artifacts.mkdir(parents=True)
    shutil.copy(_template(), directory / "mlflow.db")
    return MlflowStore(uri=f"sqlite:///{directory}/mlflow.db", artifacts=artifacts)


@dataclass(frozen=True, kw_only=True)
class MlflowServer:
    """A running server.

    Attributes:
        store: Like the store that it serves, but every call goes through the server.
    """

    url: str
    store: MlflowStore
    process: subprocess.Popen[bytes]

    def pause(self) -> None:
        """Let it accept connections and answer nothing."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, workers included. Idempotent."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def serve(store: MlflowStore) -> Iterator[MlflowServer]:
    """Serve the store, artifacts included, until the block ends."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store.uri, "--serve-artifacts", "--artifacts-destination", str(store.artifacts)),
        *("--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"),
    ]
    env = {
        "PATH": os.defpath,
        "HOME": str(store.artifacts.parent),
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = store.artifacts.parent / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=env, cwd=store.artifacts.parent, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    served = MlflowStore(uri=store.uri, artifacts=store.artifacts, served_at=url)
    server = MlflowServer(url=url, store=served, process=process)
    try:
        wait_until(lambda: _is_up(url) or process.poll() is not None, 60, "the MLflow server")
        assert process.poll() is None, log.read_text()[-2000:]
        yield server
    finally:
        server.kill()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False
