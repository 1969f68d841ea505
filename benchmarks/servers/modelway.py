"""Modelway itself, at each of the places where a request can be handed to it."""

from __future__ import annotations

import time

from benchmarks.encodings import Encoding
from benchmarks.http_client import Target
from benchmarks.platform_under_test import PlatformUnderTest
from benchmarks.servers import running
from benchmarks.workloads import Workload
from registry.errors import TimedOut

GATEWAY, SOCKETS, NODE = "Modelway, gateway", "Modelway, workers' sockets", "Modelway, TorchServe's path"
TITLES = (SOCKETS, GATEWAY, NODE)
_READY_TIMEOUT_S = 60.0
_SETTLE_S = 0.6  # the gateway's next look at the workers' health


class RunningModelway:
    """A platform that is up and has the workload's model live; several of these may share one platform."""

    def __init__(self, platform: PlatformUnderTest, workload: Workload) -> None:
        self._platform, self._workload = platform, workload
        engine_version = platform.engine_version(workload.name)
        node = platform.node()
        key, socket = node.inference_key(), node.inference_socket
        self._path = f"/predictions/{workload.name}/{engine_version}"
        self._sockets = {SOCKETS: platform.worker_sockets(workload.name), NODE: [socket]}
        self._key = key

    @property
    def targets(self) -> list[Target]:
        """Each place, with the protocol's binary form and with JSON."""
        samples = str(self._workload.samples)
        targets = []
        for encoding in (Encoding.V2_BINARY, Encoding.V2_JSON):
            gateway = f"/v2/models/{self._workload.name}/infer"
            targets.append(
                Target(server=GATEWAY, encoding=encoding, path=gateway, samples=samples, port=self._platform.settings.gateway_port)
            )
            for server, sockets in self._sockets.items():
                headers = {"x-modelway-protocol": "v2-infer", **({"authorization": f"Bearer {self._key}"} if server == NODE else {})}
                targets.append(
                    Target(server=server, encoding=encoding, path=self._path, samples=samples, sockets=tuple(sockets), headers=headers)
                )
        return targets

    def wait_ready(self) -> None:
        """Wait until the gateway answers rightly. Raises TimedOut."""
        target = next(target for target in self.targets if target.port)
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while problem := running.problem_of(target):
            if time.monotonic() > deadline:
                raise TimedOut(f"the gateway does not answer rightly ({problem})", f"Look at {self._platform.settings.logs}.")
            time.sleep(0.05)

    def pause(self) -> None:
        """Stop all its processes in their tracks."""
        running.pause(self._platform.pids)

    def resume(self) -> None:
        """Let them go on, and wait until the gateway has looked at the workers again."""
        running.resume(self._platform.pids)
        time.sleep(_SETTLE_S)
        self.wait_ready()

    def stop(self) -> None:
        """Let it go on: whoever started the platform stops it."""
        running.resume(self._platform.pids)
