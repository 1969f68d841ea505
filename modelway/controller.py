"""`python -m modelway.controller`: the controller's process. `modelway up` starts and supervises it.

Three loops in one process: the controller's, the aliases', and the control API's web server. It holds the ledger's
lease while it runs; another controller takes over, with a higher fencing token, when it no longer renews it.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from modelway.composition import build_controller, utc_now, write_prometheus
from modelway.home import prepare_home
from modelway.settings import Settings, load_settings
from registry.errors import ModelwayError
from registry.ledger_sql import SqlLedger
from serving.api import create_app
from serving.lease import LeaseKeeper

log = logging.getLogger("modelway.controller")

_ALIAS_INTERVAL_S = 1.0
_LEASE_TTL_S = 10.0
_JOIN_S = 5.0


def main() -> None:
    """Run until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        sys.exit(serve(load_settings()))
    except ModelwayError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


def serve(settings: Settings) -> int:
    """Take the lease, run the loops and the web server; the exit code."""
    prepare_home(settings)
    write_prometheus(settings)
    stop = threading.Event()
    lease = LeaseKeeper(SqlLedger(settings.ledger_url), holder=_holder(settings), ttl_s=_LEASE_TTL_S, clock=utc_now)
    with _stopped_by_sigterm(stop):
        if not lease.acquire(stop):
            return 0
    process = build_controller(settings, lease.token)
    process.archives.remove_leftovers()
    server = uvicorn.Server(
        uvicorn.Config(create_app(process.plane), host=settings.control_host, port=settings.control_port, log_config=None, access_log=False)
    )
    loops = Loops(stop, on_death=lambda: setattr(server, "should_exit", True))
    loops.start("lease", lambda: lease.keep(stop))
    loops.start("controller", lambda: process.plane.controller.run(stop))
    loops.start("aliases", lambda: process.plane.aliases.run(stop, _ALIAS_INTERVAL_S))
    server.run()
    stop.set()
    process.plane.controller.wake()
    process.plane.aliases.wake()
    loops.join()
    lease.release()
    return 1 if loops.died else 0


def _holder(settings: Settings) -> str:
    return f"{socket.gethostname()}:{settings.home}"


@contextmanager
def _stopped_by_sigterm(stop: threading.Event) -> Iterator[None]:
    """SIGTERM sets `stop`, until the web server takes the signal over."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Loops:
    """Threads that the process does not survive: if one dies, all end, and the supervisor starts the process anew."""

    def __init__(self, stop: threading.Event, *, on_death: Callable[[], None]) -> None:
        self._stop = stop
        self._on_death = on_death
        self._threads: list[threading.Thread] = []
        self.died = False

    def start(self, name: str, run: Callable[[], None]) -> None:
        """Run it in a thread of that name."""

        def guarded() -> None:
            try:
                run()
            except Exception:
                log.exception("the %s loop died", name)
                self.died = True
                self._stop.set()
                self._on_death()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def join(self) -> None:
        """Wait for all of them, but not forever."""
        for thread in self._threads:
            thread.join(_JOIN_S)


if __name__ == "__main__":
    main()
