"""Holding the controller's lease: one controller at a time, and a paused one changes nothing when it wakes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from registry.errors import Conflict, ModelwayError
from registry.ports import LeaseStore

log = logging.getLogger(__name__)

_RETRY_S = 0.5


class LeaseKeeper:
    """Takes the lease, keeps it, gives it back.

    Args:
        holder: Names a controller's place, not its process: one that is started again there takes its own lease over at once.
        ttl_s: How long the lease lasts without being renewed.
        clock: Present time in UTC.
    """

    def __init__(self, store: LeaseStore, *, holder: str, ttl_s: float, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._holder = holder
        self._ttl_s = ttl_s
        self._clock = clock
        self._token: int | None = None

    @property
    def token(self) -> int:
        """The fencing token, for every append."""
        assert self._token is not None, "acquire first"
        return self._token

    def acquire(self, stop: threading.Event) -> bool:
        """Wait for the lease. False if `stop` was set before it came."""
        while not stop.is_set():
            granted = self._store.acquire_lease(self._holder, self._ttl_s, self._clock())
            if granted is not None:
                self._token = granted.token
                return True
            log.info("another controller holds the lease; waiting")
            stop.wait(_RETRY_S)
        return False

    def keep(self, stop: threading.Event) -> None:
        """Renew the lease until `stop` is set. Raises Conflict when somebody else took it."""
        while not stop.wait(self._ttl_s / 3):
            try:
                self._store.renew_lease(self.token, self._ttl_s, self._clock())
            except Conflict:
                raise
            except ModelwayError as error:
                log.warning("the lease could not be renewed: %s", error)  # the token decides, not the time

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        self._store.release_lease(self.token)
