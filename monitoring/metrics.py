"""What the controller reports to Prometheus. Every metric is declared once, in `METRICS`; labels are bounded.

The values come from the controller's looks; this module asks nobody. It must not import `serving`: what it needs of
an observation is spelled out as small protocols.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from registry.errors import ModelwayError
from registry.release import ChannelState, EventKind, LedgerState, ReleaseRecord, Status

_NO_EFFECT = "Wait"  # the one kind of step that changes nothing


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus sees it.

    Attributes:
        unit: Of its value; empty for counts and states.
        buckets: Upper bounds, of a histogram, in its unit.
    """

    name: str
    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()


METRICS = (
    Metric("modelway_build_info", Gauge, "1; the label says which version of Modelway runs.", ("version",)),
    Metric("modelway_releases", Gauge, "Releases of a channel, by what became of them.", ("model", "channel", "status")),
    Metric("modelway_live_version", Gauge, "Version number that a channel serves.", ("model", "channel")),
    Metric("modelway_live_release", Gauge, "Number of the release that a channel serves.", ("model", "channel")),
    Metric(
        "modelway_candidate_share_percent",
        Gauge,
        "Share of a channel's requests that its candidate gets, 0 to 100.",
        ("model", "channel"),
        "percent",
    ),
    Metric(
        "modelway_rollout_seconds",
        Histogram,
        "From a release's decision to the end of its roll-out, by how it ended.",
        ("outcome",),
        "seconds",
        (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
    ),
    Metric("modelway_steps", Counter, "Steps that the controller applied.", ("step",)),
    Metric("modelway_step_failures", Counter, "Steps that the controller could not apply and tries again.", ("step", "error")),
    Metric(
        "modelway_look_seconds",
        Histogram,
        "Time that one look at nodes and gateway took.",
        (),
        "seconds",
        (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
    ),
    Metric("modelway_last_look_timestamp_seconds", Gauge, "When the controller last looked, in Unix time.", (), "seconds"),
    Metric("modelway_in_sync", Gauge, "1 if nodes and gateway are what the ledger says, so that nothing is left to do."),
    Metric("modelway_registry_reachable", Gauge, "1 if the model registry answered when it was last asked."),
    Metric("modelway_node_reachable", Gauge, "1 if a node answered at the last look.", ("node",)),
    Metric("modelway_gateway_reachable", Gauge, "1 if the gateway answered at the last look."),
)

_OUTCOMES = (Status.LIVE, Status.ABORTED, Status.SUPERSEDED)


class Reachable(Protocol):
    """A component of an observation."""

    @property
    def reachable(self) -> bool:
        """Whether it answered."""


class Observation(Protocol):
    """What the controller saw, as far as it is reported."""

    @property
    def nodes(self) -> Mapping[str, Reachable]:
        """Node name -> what it has."""

    @property
    def gateway(self) -> Reachable:
        """What the gateway does."""


class ControllerMetrics:
    """Implements the controller's report. Safe for threads.

    Args:
        registry: Where the metrics are registered; a new one by default, so that two controllers never meet.
        clock: Unix time in seconds.
    """

    def __init__(self, registry: CollectorRegistry | None = None, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry if registry is not None else CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()
        self._metrics = {metric.name: _register(metric, self._registry) for metric in METRICS}
        self._in_progress: frozenset[int] | None = None  # release ids at the last look; None before the first
        self._newest = 0  # the highest release id at the last look
        self._gauge("modelway_build_info").labels(_installed_version()).set(1)
        for outcome in _OUTCOMES:
            self._histogram("modelway_rollout_seconds").labels(outcome.value)  # 0 from the start: an increase is then seen

    # --- what the controller tells

    def looked(self, desired: LedgerState, observed: Observation, steps: Sequence[object], seconds: float) -> None:
        """After each look: what should be, what is, what is still to do, and how long looking took."""
        with self._lock:
            self._histogram("modelway_look_seconds").observe(seconds)
            self._gauge("modelway_last_look_timestamp_seconds").set(self._clock())
            self._gauge("modelway_in_sync").set(all(_kind(step) == _NO_EFFECT for step in steps))
            self._gauge("modelway_gateway_reachable").set(observed.gateway.reachable)
            self._replace("modelway_node_reachable", {(name,): float(node.reachable) for name, node in observed.nodes.items()})
            self._releases(desired)

    def applied(self, step: object) -> None:
        """A step was applied."""
        self._counter("modelway_steps").labels(_kind(step)).inc()

    def failed(self, step: object, error: ModelwayError) -> None:
        """A step could not be applied."""
        self._counter("modelway_step_failures").labels(_kind(step), type(error).__name__).inc()

    def registry_answered(self, reachable: bool) -> None:
        """The model registry was asked, and answered or not."""
        self._gauge("modelway_registry_reachable").set(reachable)

    # --- what Prometheus reads

    def render(self) -> tuple[bytes, str]:
        """All metrics as Prometheus text, and its content type."""
        with self._lock:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def text(self) -> str:
        """All metrics as Prometheus text."""
        return self.render()[0].decode()

    # --- the ledger's side

    def _releases(self, desired: LedgerState) -> None:
        counts: dict[tuple[str, ...], float] = {}
        versions: dict[tuple[str, ...], float] = {}
        releases: dict[tuple[str, ...], float] = {}
        shares: dict[tuple[str, ...], float] = {}
        for key, channel in desired.items():
            counts |= {(*key, status.value): 0.0 for status in Status}
            for record in channel.records:
                counts[*key, record.status.value] += 1
            shares[key] = _candidate_share(channel)
            if channel.live is not None:
                versions[key] = channel.live.release.version
                releases[key] = channel.live.release.id
        self._replace("modelway_releases", counts)
        self._replace("modelway_live_version", versions)
        self._replace("modelway_live_release", releases)
        self._replace("modelway_candidate_share_percent", shares)
        self._rollouts([record for channel in desired.values() for record in channel.records])

    def _rollouts(self, records: Sequence[ReleaseRecord]) -> None:
        """Count the roll-outs that ended since the last look. Those of before the first look were counted elsewhere."""
        before, now = self._in_progress, set()
        for record in records:
            if record.in_progress:
                now.add(record.release.id)
            elif before is not None and (record.release.id in before or record.release.id > self._newest):
                self._histogram("modelway_rollout_seconds").labels(_outcome(record)).observe(_rollout_seconds(record))
        self._newest = max((record.release.id for record in records), default=0)
        self._in_progress = frozenset(now)

    # --- Prometheus' side

    def _replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None:
        """Make these the gauge's only series."""
        gauge = self._gauge(name)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        gone = {tuple(sample.labels[label] for label in gauge._labelnames) for metric in gauge.collect() for sample in metric.samples}
        for labels in gone - set(values):
            gauge.remove(*labels)

    def _gauge(self, name: str) -> Gauge:
        metric = self._metrics[name]
        assert isinstance(metric, Gauge)
        return metric

    def _counter(self, name: str) -> Counter:
        metric = self._metrics[name]
        assert isinstance(metric, Counter)
        return metric

    def _histogram(self, name: str) -> Histogram:
        metric = self._metrics[name]
        assert isinstance(metric, Histogram)
        return metric


def _register(metric: Metric, registry: CollectorRegistry) -> MetricWrapperBase:
    if metric.kind is Histogram:
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
    return metric.kind(metric.name, metric.help, metric.labels, registry=registry)


def _installed_version() -> str:
    try:
        return version("modelway")
    except PackageNotFoundError:
        return "unknown"


def _kind(step: object) -> str:
    return type(step).__name__


def _candidate_share(channel: ChannelState) -> float:
    weighted = channel.candidate.last(EventKind.WEIGHTED) if channel.candidate is not None else None
    return float(weighted.data["percent"]) if weighted is not None else 0.0


def _outcome(record: ReleaseRecord) -> str:
    """How its roll-out ended; one that was live and is already retired got live."""
    return (Status.LIVE if record.status is Status.RETIRED else record.status).value


def _rollout_seconds(record: ReleaseRecord) -> float:
    ended = record.last(EventKind.LIVE) or record.last(EventKind.ABORTED) or (record.events[-1] if record.events else None)
    return (ended.at - record.release.created_at).total_seconds() if ended is not None else 0.0
