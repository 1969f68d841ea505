"""A control plane over fakes and real archives: the real planner, controller, releases and aliases, with a hand on everything.

plane = InMemoryPlane(tmp_path)
plane.register(1)                                        # digits/1, exported
plane.promote(1); plane.settle()
assert plane.live == 1
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import ModelwayError
from registry.names import ModelVersion
from registry.release import ChannelState, ReleaseRecord
from registry.strategy import Strategy
from registry.verdict import Outcome, ReleaseCounters, Verdict
from registry.view import LedgerView
from serving.aliases import AliasReconciler
from serving.archive import RuntimeOptions
from serving.archive_cache import ArchiveCache
from serving.controller import Controller
from serving.plan import Observed, PlanPolicy
from serving.releases import PromotionRequest, ReleaseService, RollbackRequest
from serving.steps import Step
from support.bundles import expected_logits, make_bundle
from support.fake_engine import FakeEngine
from support.fake_gateway import FakeGateway
from support.memory_ledger import MemoryLedger
from support.memory_registry import MemoryRegistry

MODEL = "digits"


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Notes:
    """A controller's report that only notes."""

    def __init__(self) -> None:
        self.applied_steps: list[Step] = []
        self.failures: list[tuple[Step, ModelwayError]] = []

    def looked(self, desired: Any, observed: Observed, steps: tuple[Step, ...], seconds: float) -> None:
        pass

    def applied(self, step: Step) -> None:
        self.applied_steps.append(step)

    def failed(self, step: Step, error: ModelwayError) -> None:
        self.failures.append((step, error))


class InMemoryPlane:
    """Everything of a control plane except processes, sockets and threads."""

    def __init__(self, root: Path, *, num_nodes: int = 1) -> None:
        self.root = root
        self.clock = Clock()
        self.notes = Notes()
        self.verdict = Verdict(Outcome.PASS, ("as the test says",))
        self.registry = MemoryRegistry()
        self.ledger = MemoryLedger()
        self.engines = {
            f"node-{i}": FakeEngine(name=f"node-{i}", inference_socket=f"/run/node-{i}.sock", answer=answer_as_trained)
            for i in range(num_nodes)
        }
        self.gateway = FakeGateway()
        self.start()

    @property
    def engine(self) -> FakeEngine:
        return self.engines["node-0"]

    def start(self) -> None:
        """A new controller over the same world, as after a crash."""
        self.view = LedgerView(self.ledger)
        self.archives = ArchiveCache(self.root / "archives", self.registry, RuntimeOptions())
        self.releases = ReleaseService(ledger=self.ledger, view=self.view, archives=self.archives, clock=self.clock)
        self.controller = Controller(
            ledger=self.ledger,
            view=self.view,
            archives=self.archives,
            engines=self.engines,
            gateway=self.gateway,
            judge=self._judge,
            policy=PlanPolicy(load_timeout_s=60),
            report=self.notes,
            clock=self.clock,
        )
        self.aliases = AliasReconciler(
            ledger=self.ledger,
            view=self.view,
            registry=self.registry,
            releases=self.releases,
            clock=self.clock,
            on_release=self.controller.wake,
        )

    def _judge(self, candidate: ReleaseCounters, live: ReleaseCounters, strategy: Strategy) -> Verdict:
        return self.verdict

    def register(self, version: int, **bundle: Any) -> ModelVersion:
        """Register and export the next version, whose weights have the version as their seed."""
        made = self.registry.register(MODEL)
        assert made == ModelVersion(MODEL, version)
        root = self.root / f"bundle-{version}"
        self.registry.attach_bundle(made, make_bundle(root, version=made, **{"weights_seed": version, **bundle}).root)
        return made

    def promote(self, version: int, **changes: Any) -> ReleaseRecord:
        """Decide a promotion."""
        request = PromotionRequest(**{"model_version": ModelVersion(MODEL, version), "actor": "tester", **changes})
        return self.releases.decide(self.releases.prepare_promotion(request))[0]

    def rollback(self, **changes: Any) -> ReleaseRecord:
        """Decide a rollback."""
        return self.releases.rollback(RollbackRequest(**{"model": MODEL, "actor": "tester", **changes}))[0]

    def settle(self, max_looks: int = 200) -> None:
        """Let the controller look until nothing is left to do, moving the clock on when it waits."""
        idle = 0
        for _ in range(max_looks):
            if self.controller.step():
                idle = 0
                continue
            for probe in list(self.controller._probes.values()):  # the one thing that goes on by itself
                probe.exception(timeout=10)
            idle += 1
            self.clock.advance(3)
            if idle > 3 and self.channel.candidate is None:
                return
        raise AssertionError(f"no end; last look: {self.controller.last_look}")

    @property
    def channel(self) -> ChannelState:
        return self.view.channel(MODEL, "production")

    @property
    def live(self) -> int | None:
        """The live version by the ledger."""
        return self.channel.live.release.version if self.channel.live else None

    @property
    def routed(self) -> Mapping[int, float]:
        """Version -> share of production's traffic in percent, by the gateway."""
        table = self.gateway.loaded
        assert table is not None
        backends = table.backends_by_release()
        shares: dict[int, float] = {}
        for route in table.channels:
            if route.channel == "production":
                shares[backends[route.live].version] = 100 - route.candidate_percent
                if route.candidate is not None:
                    shares[backends[route.candidate].version] = route.candidate_percent
        return shares


def answer_as_trained(model: str, engine_version: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """What a worker of that version answers, computed from its weights."""
    length = int(headers["inference-header-content-length"])  # the probe's request: its one tensor follows the JSON
    tensor = json.loads(body[:length])["inputs"][0]
    rows = np.frombuffer(body[length:], dtype="<f4").reshape(tensor["shape"])
    logits = expected_logits(rows, weights_seed=int(engine_version.split("-", maxsplit=1)[0]))
    output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
    return 200, json.dumps({"outputs": [output]}).encode()
