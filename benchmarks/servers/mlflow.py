"""`mlflow models serve` (mlflow.org/docs/latest/ml/deployment)."""

from __future__ import annotations

import subprocess

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, NUM_WORKERS, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    saved = place.directory / "saved"
    subprocess.run(
        [str(place.python), str(APPS / "mlflow_save.py"), str(place.workload.model), str(saved)],
        check=True,
        capture_output=True,
        cwd=place.directory,
    )
    argv = [str(place.bin / "mlflow"), "models", "serve", "--model-uri", str(saved), "--env-manager", "local"]
    argv += ["--host", "127.0.0.1", "--port", str(place.port), "--workers", str(setting.options["workers"])]
    return Launch(argv=tuple(argv), env={"MLFLOW_TRACKING_URI": f"sqlite:///{place.directory}/mlflow.db"})


RIVAL = Rival(
    name="mlflow",
    title="MLflow models serve",
    package="mlflow",
    environment="mlflow",
    how="the onnx flavour with one thread in each session, 2 uvicorn workers; it has no binary form and no batching",
    paths={Encoding.MLFLOW_JSON: "/invocations"},
    settings=(Setting(name="2 workers", options={"workers": NUM_WORKERS}),),
    launch=_launch,
    takes_large=False,
)
