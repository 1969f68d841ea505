"""The embedded MLflow server: the real one, under the real supervisor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from modelway import mlflow_server
from modelway.home import prepare_home
from modelway.settings import Settings
from modelway.supervisor import Child, Supervisor
from support.ports import free_port

pytestmark = pytest.mark.integration

# In a process of their own, as a training run and the controller are: MLflow keeps its tracking URI for the process.
WRITE = """
import pathlib, sys
from mlflow import MlflowClient
uri, name, location, path = sys.argv[1:]
client = MlflowClient(uri)
run = client.create_run(client.create_experiment(name, artifact_location=location or None))
pathlib.Path(path).write_text(f"weights of {name}")
client.log_artifact(run.info.run_id, path, "model")
client.create_registered_model(name)
version = client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
client.set_registered_model_alias(name, "production", version.version)
"""
READ = """
import sys
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
uri, name = sys.argv[1:]
client = MlflowClient(uri)
version = client.get_model_version_by_alias(name, "production")
folder = download_artifacts(run_id=version.run_id, artifact_path="model", tracking_uri=uri)
source = download_artifacts(artifact_uri=client.get_model_version_download_uri(name, version.version), tracking_uri=uri)
print(*(open(f"{path}/weights.txt").read() for path in (folder, source)), sep="\\n")
"""


def python(code: str, *args: str) -> str:
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home", mlflow_port=free_port())
    prepare_home(settings)
    return settings


@pytest.fixture
def server(settings: Settings) -> Iterator[Supervisor]:
    child = Child(spec=mlflow_server.process(settings), ready=lambda: mlflow_server.ready(settings))
    with Supervisor([child], run_dir=settings.run_dir) as supervisor:
        yield supervisor


def test_runs_of_either_way_are_read_either_way(settings: Settings, server: Supervisor, tmp_path: Path) -> None:
    store, root, file = mlflow_server.store_url(settings), mlflow_server.artifact_root(settings), str(tmp_path / "weights.txt")
    python(WRITE, store, "direct", f"{root}/direct", file)

    server.start(60)
    python(WRITE, settings.mlflow_url, "served", "", file)
    for name in ("direct", "served"):
        assert python(READ, settings.mlflow_url, name).splitlines() == [f"weights of {name}"] * 2

    server.stop()
    assert not mlflow_server.ready(settings)
    for name in ("direct", "served"):
        assert python(READ, store, name).splitlines() == [f"weights of {name}"] * 2
    assert {path.name for path in settings.artifacts.rglob("weights.txt")} == {"weights.txt"}
    assert not list(Path.cwd().glob("mlruns"))


def test_it_answers_only_to_its_own_names_and_listens_only_where_it_should(settings: Settings, server: Supervisor) -> None:
    server.start(60)
    url = f"{settings.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(url, trust_env=False).status_code == 200
    for host in ("10.attacker.example", "192.168.1.1", f"localhost.attacker.example:{settings.mlflow_port}", "localhost:1"):
        assert httpx.get(url, headers={"host": host}, trust_env=False).status_code == 403, host
    assert httpx.get(f"{settings.mlflow_url}/api/2.0/mlflow-artifacts/artifacts", trust_env=False).status_code != 200

    leader = psutil.Process(server.statuses()[0].pid)
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in (leader, *leader.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", settings.mlflow_port)}
