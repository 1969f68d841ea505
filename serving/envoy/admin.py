"""Envoy's admin interface, over its Unix socket. Nothing else of the platform speaks to it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlencode

from registry.errors import TimedOut, Unavailable
from serving import unix_http
from serving.envoy.config import EnvoyConfig
from serving.envoy.stats import FILTER, Snapshot, parse

_POLL_S = 0.002
_NEXT_STEP = "Start the platform with `modelway up`, or see the gateway's log."


class Admin:
    """One Envoy's admin interface. Safe for threads. Every call raises Unavailable if it does not answer."""

    def __init__(self, config: EnvoyConfig) -> None:
        self._socket = config.admin_socket
        self._timeout_s = config.admin_timeout_s

    def get(self, path: str, **params: str) -> str:
        """The text that a path answers with."""
        return self._call("GET", f"{path}?{urlencode(params)}" if params else path)

    def post(self, path: str) -> None:
        """Ask for an effect."""
        self._call("POST", path)

    def _call(self, method: str, target: str) -> str:
        # A new connection each time: a kept one would die with each restart of Envoy and fail the next call.
        try:
            status, answer = unix_http.call(self._socket, method, target, timeout_s=self._timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the gateway does not answer ({self._socket}: {error})", _NEXT_STEP) from error
        text = answer.decode(errors="replace")
        if status != HTTPStatus.OK:
            raise Unavailable(f"the gateway's admin interface answered {status} ({target}: {text[:200]})", _NEXT_STEP)
        return text

    def snapshot(self) -> Snapshot:
        """The counters now. Latency histograms may lag behind by what worker threads have not handed over yet."""
        return parse(self.get("/stats/prometheus", text_readouts="", filter=FILTER))

    def snapshot_past_all_workers(self, timeout_s: float) -> Snapshot:
        """The counters, read after every worker thread did what it was told before this call.

        Envoy's main thread hands routes, clusters and requests for statistics to its workers through one queue per
        worker, in order. With `stats_flush_on_admin`, a read starts a merge on all workers, unless the last one is
        still under way; then `server.dropped_stat_flushes` counts. So when two reads in a row count nothing, the
        first one's merge began and ended between them: each worker has been through its queue. No guessed pause
        is needed. (Envoy's `InstanceImpl::flushStats`, `ThreadLocalStoreImpl::mergeHistograms`.)

        Raises:
            TimedOut: If a worker thread is stuck for `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        dropped = [self._dropped_flushes(), self._dropped_flushes()]
        while True:
            snapshot = self.snapshot()
            dropped = [*dropped[-2:], snapshot.dropped_flushes]
            if len(set(dropped)) == 1:
                return snapshot
            if time.monotonic() > deadline:
                raise TimedOut(f"a worker thread of the gateway is stuck for {timeout_s:g} s", "Restart the gateway.")
            time.sleep(_POLL_S)

    def _dropped_flushes(self) -> int:
        text = self.get("/stats", filter=r"^server\.dropped_stat_flushes$")
        try:
            return int(text.rpartition(":")[2])
        except ValueError as error:
            raise Unavailable(f"the gateway's statistics cannot be read ({text[:200]!r})", "Check the version of Envoy.") from error

    def wait(self, done: Callable[[Snapshot], bool], timeout_s: float) -> Snapshot | None:
        """The first snapshot for which `done` holds; None if there is none within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            snapshot = self.snapshot()
            if done(snapshot):
                return snapshot
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)
