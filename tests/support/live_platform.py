"""The real platform for tests: `modelway up` in a home of its own, with models whose answers are one numpy line.

MLflow, TorchServe, Envoy and the controller are the real ones; only training is left out: versions are registered with
bundles from `support.bundles`, version n with weights of seed n.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from modelway.composition import open_registry, open_tracking
from modelway.control import ControlClient
from modelway.load import Answer, OpenLoopLoad
from modelway.settings import Settings
from registry.names import ModelVersion
from support.bundles import expected_logits, golden_inputs, make_bundle
from support.polling import wait_until
from support.ports import free_port

ROWS = golden_inputs(32)


@dataclass
class LivePlatform:
    """One home and the platform that runs in it."""

    home: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ports = {name: free_port() for name in ("gateway_port", "control_port", "mlflow_port")}
        self.settings = Settings(home=self.home, actor="tester", **{**ports, **self.overrides})
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("MODELWAY_", "MLFLOW_"))}
        self.env |= self.settings.environment()

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command line of `modelway` to its end."""
        argv = [sys.executable, "-m", "modelway", *arguments]
        return subprocess.run(argv, env=self.env, cwd=self.home.parent, capture_output=True, text=True, timeout=timeout_s, check=False)

    def must(self, *arguments: str) -> Any:
        """Run a command line that must succeed, with --json; its result."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def up(self) -> None:
        self.must("up", "--detach")

    def down(self) -> None:
        self.must("down")

    def control(self) -> ControlClient:
        return ControlClient(self.settings.control_url)

    def register(self, model: str, version: int, **bundle: Any) -> ModelVersion:
        """Register the next version of a model and attach a bundle to it."""
        from mlflow import MlflowClient

        tracking = open_tracking(self.settings)
        client = MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)
        experiment = client.get_experiment_by_name(model)
        if experiment is None:
            client.create_registered_model(model)
            experiment_id = client.create_experiment(model, artifact_location=f"{tracking.artifact_root}/{model}")
        else:
            experiment_id = experiment.experiment_id
        run = client.create_run(experiment_id)
        made = client.create_model_version(model, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
        assert int(made.version) == version
        name = ModelVersion(model, version)
        if bundle.pop("exported", True):
            root = self.home.parent / f"bundle-{model}-{version}"
            open_registry(tracking).attach_bundle(name, make_bundle(root, version=name, **{"weights_seed": version, **bundle}).root)
        return name

    def child(self, name: str) -> int:
        """Pid of a child of the supervisor."""
        return int(json.loads((self.settings.run_dir / f"{name}.json").read_text())["pid"])

    def ask(self, model: str, *, rows: np.ndarray = ROWS[:1], path: str | None = None, **headers: str) -> httpx.Response:
        """One inference through the gateway."""
        url = f"{self.settings.gateway_url}{path or f'/v2/models/{model}/infer'}"
        return httpx.post(url, content=payload(rows), headers={"content-type": "application/json", **headers}, timeout=30)

    def load(self, model: str, requests_per_s: float = 200.0, *, rows: np.ndarray = ROWS) -> OpenLoopLoad:
        """An open-loop load on the model's production channel; see `wrong_answers`."""
        url = f"{self.settings.gateway_url}/v2/models/{model}/infer"
        return OpenLoopLoad(url=url, payloads=[payload(row[None]) for row in rows], requests_per_s=requests_per_s)

    def wait_in_sync(self, timeout_s: float = 60) -> None:
        """Wait until the controller is there and has nothing left to do."""
        with self.control() as control:
            wait_until(lambda: control.ready() and control.status()["in_sync"], timeout_s=timeout_s, what="agreement")


def payload(rows: np.ndarray) -> bytes:
    """An Open Inference Protocol v2 request of float32 rows [n, 4]."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def logits_of(body: Mapping[str, Any]) -> np.ndarray:
    """The logits in an answer, [n, 3]."""
    output = body["outputs"][0]
    return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])


def wrong_answers(answers: Sequence[Answer]) -> list[str]:
    """What is wrong with each answer of a load: status, or values that are not those of the version that it claims."""
    return [problem for answer in answers if (problem := _problem(answer))]


def _problem(answer: Answer) -> str:
    if answer.status != 200:
        return f"status {answer.status}: {answer.body}"
    if answer.body.get("model_version") != answer.version:
        return f"header says version {answer.version}, body says {answer.body.get('model_version')}"
    expected = expected_logits(ROWS[answer.item][None], weights_seed=int(answer.version))
    got = logits_of(answer.body)
    return "" if np.allclose(got, expected, atol=1e-3) else f"values are not those of version {answer.version}: {got} != {expected}"
