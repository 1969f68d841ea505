"""The real platform, started with `modelway up --detach` in a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bundles import bundle_of, make_bundle
from benchmarks.mlp import MODEL
from benchmarks.ports import free_ports
from benchmarks.servers import running
from benchmarks.servers.rival import NUM_WORKERS
from benchmarks.workloads import Workload, load_samples
from modelway.child_record import read_children
from modelway.composition import build_nodes, open_registry, open_tracking
from modelway.control import ControlClient
from modelway.settings import Settings
from registry.errors import ModelwayError, NotFound, TimedOut
from registry.names import ModelVersion
from serving.runtime.modelway_runtime.sockets import prefix_of
from serving.torchserve import TorchServeNode

_COMMAND_TIMEOUT_S = 300.0


class PlatformUnderTest:
    """One home; nothing runs until `up`."""

    def __init__(self, home: Path) -> None:
        gateway, control, mlflow = free_ports(3)
        self.settings = Settings(
            home=home,
            actor="benchmark",
            gateway_port=gateway,
            control_port=control,
            mlflow_port=mlflow,
            workers_per_version=NUM_WORKERS,
        )
        self._versions: set[int] = set()
        foreign = ("MODELWAY_", "MLFLOW_")
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | self.settings.environment()

    def command(self, *arguments: str) -> float:
        """Run `modelway ARGUMENTS` to its end; its seconds. Raises ModelwayError with its words."""
        argv = [sys.executable, "-m", "modelway", *arguments]
        started = time.monotonic()
        done = subprocess.run(
            argv, env=self._env, cwd=self.settings.home.parent, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
        seconds = time.monotonic() - started
        if done.returncode != 0:
            raise ModelwayError(f"modelway {' '.join(arguments)} ended with {done.returncode} ({done.stderr.strip()[-500:]})")
        return seconds

    def stop(self) -> None:
        """Let all its processes go on, if they were stopped in their tracks, and end it."""
        running.resume(self.pids)
        self.command("down")

    def control(self) -> ControlClient:
        """A connection to the control API."""
        return ControlClient(self.settings.control_url)

    def node(self) -> TorchServeNode:
        """The adapter to its one node."""
        return TorchServeNode(build_nodes(self.settings)[0])

    def register(self, num_versions: int) -> None:
        """Register versions 1 to `num_versions`, each with its bundle."""
        from mlflow import MlflowClient  # noqa: PLC0415  costs seconds, and only this needs it

        self._versions = set(range(1, num_versions + 1))
        tracking = open_tracking(self.settings)
        client, registry = MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri), open_registry(tracking)
        client.create_registered_model(MODEL)
        experiment = client.create_experiment(MODEL, artifact_location=f"{tracking.artifact_root}/{MODEL}")
        for version in sorted(self._versions):
            run = client.create_run(experiment)
            client.create_model_version(MODEL, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
            name = ModelVersion(MODEL, version)
            registry.attach_bundle(name, make_bundle(self.settings.home.parent / f"bundle-{version}", name).root)

    def serve(self, workloads: Sequence[Workload]) -> None:
        """Register each workload's model as version 1 and make it live."""
        from mlflow import MlflowClient  # noqa: PLC0415

        tracking = open_tracking(self.settings)
        client, registry = MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri), open_registry(tracking)
        for workload in workloads:
            client.create_registered_model(workload.name)
            experiment = client.create_experiment(workload.name, artifact_location=f"{tracking.artifact_root}/{workload.name}")
            run = client.create_run(experiment)
            client.create_model_version(workload.name, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
            version = ModelVersion(workload.name, 1)
            inputs, expected = load_samples(workload.samples)
            golden = slice(0, workload.num_golden)
            root = self.settings.home.parent / f"bundle-{workload.name}"
            registry.attach_bundle(version, bundle_of(root, version, workload.model, inputs[golden], expected[golden]).root)
            self.command("promote", str(version))

    def engine_version(self, model: str) -> str:
        """The engine version of a model of which the node holds one version. Raises NotFound."""
        found = [engine_version for name, engine_version in self.node().observe().archives if name == model]
        if len(found) != 1:
            raise NotFound(f"the node does not hold one version ({model}: {found})", f"Look at {self.settings.logs}.")
        return found[0]

    def worker_sockets(self, model: str) -> list[str]:
        """The workers' own sockets of that version."""
        prefix = prefix_of(model, self.engine_version(model))
        return [socket for socket in self.node().worker_sockets() if Path(socket).name.startswith(prefix)]

    @property
    def pids(self) -> list[int]:
        """Its processes in the order in which they may be stopped in their tracks: those that watch before those watched."""
        children = read_children(self.settings.run_dir)
        order = {"controller": 0, "gateway": 1}
        running = sorted((c for c in children if c.running and c.record.pid is not None), key=lambda c: order.get(c.record.name, 2))
        supervisors = sorted({child.supervisor_pid for child in children if child.supervisor_pid is not None})
        return [*supervisors, *(child.record.pid for child in running if child.record.pid is not None)]

    def loaded(self) -> dict[int, str]:
        """Version -> engine version of what the node has registered."""
        found = [engine_version for _, engine_version in self.node().observe().archives]
        return {int(engine_version.partition("-")[0]): engine_version for engine_version in found}

    def wait_unloaded(self, version: int | None = None, timeout_s: float = 120.0) -> int:
        """Wait until the node does not hold the version, or any one of those registered, and the controller is idle; which it is.

        Raises:
            TimedOut: It stays loaded.
        """
        wanted = self._versions if version is None else {version}
        deadline = time.monotonic() + timeout_s
        with self.control() as control:
            while not (unloaded := wanted - self.loaded().keys()) or not control.status()["in_sync"]:
                if time.monotonic() > deadline:
                    raise TimedOut(
                        f"still loaded after {timeout_s:g} s ({MODEL}/{version or sorted(wanted)})", f"Look at {self.settings.logs}."
                    )
                time.sleep(0.1)
        return min(unloaded)
