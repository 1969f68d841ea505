"""The embedded MLflow server, as a process of this home.

Its artifacts are plain files under `home/artifacts`, and every experiment records that path as its location. So a run
that was made through the server and a run that was made directly on the store (`store_url`, while the server is down)
are the same to a reader of either kind; `mlflow-artifacts:` locations, which the server would hand out by default,
cannot be read without it. The price: a client of the embedded server must see this home's files, as every part of the
platform does. Clients elsewhere want an MLflow server of their own (`tracking_uri`).

Starting takes about 5 s: `mlflow server` imports MLflow, then starts uvicorn, which imports it once more.
"""

from __future__ import annotations

import os
import sys

import httpx

from modelway.settings import Settings
from serving.process import ProcessSpec

NAME = "mlflow"


def store_url(settings: Settings) -> str:
    """The SQLAlchemy URL of the embedded server's store; usable as a tracking URI while the server is down."""
    return settings.mlflow_store_url


def artifact_root(settings: Settings) -> str:
    """The directory that holds all artifacts; what a client that creates an experiment gives as its location's parent."""
    return str(settings.artifacts)


def allowed_hosts(settings: Settings) -> tuple[str, ...]:
    """Values of the Host header that the server answers, so that no other site's page can reach it through a browser.

    MLflow's default would also accept names such as `10.attacker.example`.
    """
    names = ["localhost", "127.0.0.1", settings.mlflow_host, *settings.mlflow_allowed_hosts.split(",")]
    exact = dict.fromkeys(f"{name.strip()}:{settings.mlflow_port}" for name in names if name.strip())
    return tuple(exact)


def process(settings: Settings) -> ProcessSpec:
    """How to run the server."""
    argv = (
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", settings.mlflow_host, "--port", str(settings.mlflow_port)),
        *("--workers", "1"),
        *("--default-artifact-root", artifact_root(settings), "--no-serve-artifacts"),
        *("--allowed-hosts", ",".join(allowed_hosts(settings))),
    )
    env = {
        "PATH": os.defpath,
        "HOME": str(settings.home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
        # Not an argument: it may hold a password, and everybody can read arguments.
        "MLFLOW_BACKEND_STORE_URI": store_url(settings),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves a process and a second of start
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    }
    return ProcessSpec(name=NAME, argv=argv, cwd=settings.home, env=env, log=settings.logs / "mlflow.log", stop_timeout_s=10.0)


def ready(settings: Settings, timeout_s: float = 1.0) -> bool:
    """Whether the server answers. Asks a path that the host check does not guard."""
    try:
        # A proxy of the environment must not get between two programs of one machine.
        return httpx.get(f"{settings.mlflow_url}/health", timeout=timeout_s, trust_env=False).is_success
    except httpx.HTTPError:
        return False
