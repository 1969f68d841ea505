"""An in-memory `Gateway`. Passes the same contract tests as the real one; its hooks plant what tests need.

gateway = FakeGateway()
gateway.down = True                     # nobody answers; a table applied now is loaded when it is up again
gateway.refusing = "unknown cluster"    # it answers, and does not take tables
gateway.active[3] = 2                   # two requests of release 3 are in flight
gateway.count(3, latencies_ms=[4, 5], num_errors=1)
gateway.restart()                       # counters start from zero, the table stays
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from registry.errors import TimedOut, Unavailable
from registry.verdict import ReleaseCounters
from serving.ports import GatewayState
from serving.routes import RouteTable

BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 60000.0, inf)


@dataclass
class FakeGateway:
    """A proxy that lives in this process.

    Attributes:
        applied: Every table that was applied, in order, those that it refused or was down for included.
        tampered: Whether somebody edited its files by hand; the next table that it takes mends them.
        wanted: What is on its disk.
        loaded: What it routes by; None until it took a table.
    """

    down: bool = False
    refusing: str = ""
    tampered: bool = False
    applied: list[RouteTable] = field(default_factory=list)
    wanted: RouteTable | None = None
    loaded: RouteTable | None = None
    active: dict[int, int] = field(default_factory=dict)
    counters: dict[int, ReleaseCounters] = field(default_factory=dict)

    def observe(self) -> GatewayState:
        if self.down:
            return GatewayState(reachable=False)
        if self.loaded is not self.wanted:
            self._load(self.wanted)
        releases = [backend.release_id for backend in self.loaded.backends] if self.loaded else []
        return GatewayState(
            reachable=True,
            digest=self.loaded.digest if self.loaded and not self.tampered else None,
            active={release_id: self.active.get(release_id, 0) for release_id in releases},
            counters={release_id: self.counters.get(release_id, ReleaseCounters()) for release_id in releases},
        )

    def apply(self, table: RouteTable) -> None:
        self.applied.append(table)
        if self.refusing and not self.down:
            raise TimedOut(f"the gateway refused the routes ({self.refusing})", "The routes before stay in use.")
        self.wanted = table
        if self.down:
            raise Unavailable("the gateway does not answer (fake)", "The routes are on disk and are loaded when it starts.")
        self.tampered = False
        self._load(table)

    def _load(self, table: RouteTable | None) -> None:
        """Envoy keeps a cluster's counters while the cluster exists, and forgets them with it."""
        self.loaded = table
        kept = {backend.release_id for backend in table.backends} if table else set()
        self.counters = {release_id: counters for release_id, counters in self.counters.items() if release_id in kept}
        self.active = {release_id: n for release_id, n in self.active.items() if release_id in kept}

    def count(self, release_id: int, *, latencies_ms: Sequence[float] = (), num_errors: int = 0) -> None:
        """Answer one request per latency, and `num_errors` further ones with 5xx that have no latency."""
        before = self.counters.get(release_id, ReleaseCounters(latency_buckets=dict.fromkeys(BOUNDS_MS, 0)))
        self.counters[release_id] = ReleaseCounters(
            num_requests=before.num_requests + len(latencies_ms) + num_errors,
            num_errors=before.num_errors + num_errors,
            latency_buckets={bound: n + sum(ms <= bound for ms in latencies_ms) for bound, n in before.latency_buckets.items()},
        )

    def restart(self) -> None:
        """What a restart of its process does: it loads what is on disk and counts from zero."""
        self.down = False
        self.loaded = self.wanted
        self.counters.clear()
        self.active.clear()
