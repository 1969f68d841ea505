"""Holding the controller's lease: wait for it, keep it, give it up. The rules are in `registry.lease_terms`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from registry.errors import TimedOut, Unavailable
from registry.ports import LeaseStore

log = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 3
_TRIES_PER_TTL = 10


class Lease:
    """A lease that is held.

    Attributes:
        token: The fencing token for every append of its holder.
    """

    def __init__(self, store: LeaseStore, token: int, ttl_s: float, clock: Callable[[], datetime]) -> None:
        self.token = token
        self._store = store
        self._ttl_s = ttl_s
        self._clock = clock

    def keep(self, stop: threading.Event) -> None:
        """Renew it until `stop` is set. Raises Conflict as soon as it is seen to be lost.

        While the ledger is down it keeps trying, beyond the lease's end too: nobody else can take it meanwhile, and
        nothing can be appended by anybody.
        """
        while not stop.wait(self._ttl_s / _RENEWALS_PER_TTL):
            try:
                self._store.renew_lease(self.token, self._ttl_s, self._clock())
            except (Unavailable, TimedOut) as error:
                log.warning("the controller's lease could not be renewed: %s", error)

    def release(self) -> None:
        """Give it up, so that the next controller need not wait; if the ledger is down, it runs out by itself."""
        try:
            self._store.release_lease(self.token)
        except (Unavailable, TimedOut) as error:
            log.warning("the controller's lease could not be given up: %s", error)


def acquire_lease(store: LeaseStore, holder: str, ttl_s: float, clock: Callable[[], datetime], stop: threading.Event) -> Lease | None:
    """Wait until `holder` has the lease; None if `stop` is set before that.

    Args:
        holder: Who asks. Two controllers must never have the same name: the one of that name that comes later gets the
            lease at once and fences the other off, which is what a controller that was killed and restarted needs.
        ttl_s: Seconds without renewal after which others may take it.

    Raises:
        Unavailable, TimedOut: The ledger does not answer.
    """
    told = False
    while not stop.is_set():
        granted = store.acquire_lease(holder, ttl_s, clock())
        if granted is not None:
            return Lease(store, granted.token, ttl_s, clock)
        if not told:
            log.info("another controller holds the lease; waiting for it")
            told = True
        stop.wait(ttl_s / _TRIES_PER_TTL)
    return None
