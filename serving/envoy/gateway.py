"""The gateway as the controller sees it: routes in, counters out. Everything Envoy's goes through here."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from registry.errors import TimedOut, Unavailable
from serving.envoy import files
from serving.envoy.admin import Admin
from serving.envoy.config import EnvoyConfig
from serving.envoy.process import DRAIN_TIME_S
from serving.envoy.stats import Snapshot, Updates
from serving.ports import GatewayState
from serving.routes import RouteTable

_QUIET_S = 0.5
_REASON = re.compile(r"(?:update rejected|update failure|Failed to load|Unable to|rejected):? ?(?P<reason>.+)")


class EnvoyGateway:
    """Implements `serving.ports.Gateway` for one Envoy. Safe for threads."""

    def __init__(self, config: EnvoyConfig) -> None:
        self._config = config
        self._admin = Admin(config)
        self._lock = threading.Lock()

    # --- observing

    def observe(self) -> GatewayState:
        """What it has loaded and counted. Never raises for a gateway that is down, starting or stuck."""
        try:
            snapshot = self._admin.snapshot_past_all_workers(self._config.admin_timeout_s)
        except (Unavailable, TimedOut):
            return GatewayState(reachable=False)
        digest = files.written_digest(self._config)
        loaded = digest == snapshot.clusters.version == snapshot.routes.version
        return GatewayState(
            reachable=True, digest=digest if loaded else None, active=dict(snapshot.active), counters=dict(snapshot.counters)
        )

    def ready(self) -> bool:
        """Whether it has loaded its files and accepts requests."""
        try:
            return self._admin.get("/ready").strip() == "LIVE"
        except Unavailable:
            return False

    def metrics_text(self) -> str:
        """All of its metrics, as Prometheus text. Raises Unavailable."""
        return self._admin.get("/stats/prometheus")

    # --- changing

    def apply(self, table: RouteTable) -> None:
        """Make the table the wanted one. See `serving.ports.Gateway`.

        First the clusters of both tables, then the routes, then, once every worker thread has them, the new clusters
        alone: at no time does a route name a cluster that is missing, and a crash in between leaves files that work.

        Raises:
            Unavailable: If Envoy does not answer, or the disk takes no more.
            TimedOut: If Envoy refuses the table (its reason is in the message; the files are put back), or is stuck.
        """
        with self._lock:
            before, whole = files.read_table(self._config), files.written_digest(self._config) is not None
            both = files.grown(table, before)
            try:
                self._switch(table, both)
            except Unavailable as error:
                self._write_all(table, both)
                raise Unavailable(f"{error.what}; the routes are on disk", "They are loaded when the gateway starts.") from error
            except TimedOut:
                if before is not None and whole:
                    self._write_all(before, both)
                else:  # somebody edited the files: nothing in them is worth keeping, or the next table fails like this one
                    self._config.table_file.unlink(missing_ok=True)
                raise

    def _switch(self, table: RouteTable, both: RouteTable) -> None:
        config = self._config
        files.write(config.table_file, files.table_bytes(both))
        self._load(config.clusters_file, files.clusters_bytes(both, config), both.digest, lambda s: s.clusters)
        self._wait_for_health_checks()
        self._load(config.routes_file, files.routes_bytes(table, config), table.digest, lambda s: s.routes)
        self._admin.snapshot_past_all_workers(config.apply_timeout_s)
        if both.digest != table.digest:
            self._load(config.clusters_file, files.clusters_bytes(table, config), table.digest, lambda s: s.clusters)
            files.write(config.table_file, files.table_bytes(table))

    def _wait_for_health_checks(self) -> None:
        if self._admin.wait(lambda s: not s.num_warming, self._config.apply_timeout_s) is None:
            raise TimedOut(f"the gateway's clusters are not ready within {self._config.apply_timeout_s:g} s", "See the gateway's log.")

    def _write_all(self, table: RouteTable, both: RouteTable) -> None:
        """Write without waiting, in an order that leaves no route without its cluster wherever it ends."""
        config = self._config
        if files.read_bytes(config.routes_file) != files.routes_bytes(table, config):
            files.write(config.clusters_file, files.clusters_bytes(both, config))
            files.write(config.routes_file, files.routes_bytes(table, config))
        files.write(config.clusters_file, files.clusters_bytes(table, config))
        files.write(config.table_file, files.table_bytes(table))

    def _load(self, path: Path, content: bytes, version: str, updates: Callable[[Snapshot], Updates]) -> None:
        """Write one file and wait until Envoy uses it; nothing if it does already."""
        before = updates(self._admin.snapshot())
        if files.read_bytes(path) == content and before.version == version:
            return
        log_size = self._config.log.stat().st_size if self._config.log.exists() else 0
        files.write(path, content)
        seen = self._admin.wait(lambda s: updates(s).attempts > before.attempts, self._config.apply_timeout_s)
        after = updates(seen) if seen else before
        if after.failures == before.failures and after.version == version:
            return
        waited = f"no answer within {self._config.apply_timeout_s:g} s"
        reason = self._reason(log_size) if after.failures > before.failures else waited
        raise TimedOut(f"the gateway does not take the {path.stem} ({reason})", "The routes before stay in use.")

    def _reason(self, log_size: int) -> str:
        """What Envoy wrote about the refusal behind the first `log_size` bytes of its log."""
        try:
            with self._config.log.open("rb") as log:
                log.seek(log_size)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        reasons = [match["reason"].strip() for line in lines if (match := _REASON.search(line))]
        return reasons[-1] if reasons else f"rejected; see {self._config.log}"

    # --- ending

    def drain(self, timeout_s: float) -> None:
        """Let clients go: no new connection, and every request that was accepted is answered. For good, before a stop.

        Each answer from now on closes its connection. Connections without a request are closed by the stop itself.

        Raises:
            Unavailable: If Envoy does not answer.
            TimedOut: If requests are still in flight after `timeout_s`.
        """
        started = time.monotonic()
        self._admin.post("/healthcheck/fail")
        self._admin.post("/drain_listeners?graceful")
        last_active = time.monotonic()
        while True:
            snapshot = self._admin.snapshot()
            now = time.monotonic()
            if snapshot.active_requests:
                last_active = now
            closed = now - started > DRAIN_TIME_S + _QUIET_S
            if closed and not snapshot.active_requests and (not snapshot.connections or now - last_active > _QUIET_S):
                return
            if now - started > timeout_s:
                raise TimedOut(f"the gateway still has {snapshot.active_requests} requests in flight after {timeout_s:g} s")
            time.sleep(0.02)
