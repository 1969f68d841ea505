"""`python -m modelway.controller`: the controller's process. `modelway up` starts and supervises it.

Three loops in one process: the controller's, the aliases', and the control API's web server. It holds the ledger's
lease while it runs; another controller takes over, with a higher fencing token, when it no longer renews it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from modelway.composition import build_controller, utc_now, write_prometheus
from modelway.home import prepare_home
from modelway.settings import Settings, load_settings
from registry.errors import ModelwayError
from registry.lease import Lease, acquire_lease
from serving.api import create_app

log = logging.getLogger("modelway.controller")

_ALIAS_INTERVAL_S = 1.0
_LEASE_TTL_S = 10.0
_EXIT_LOST_LEASE = 5


def main() -> None:
    """Run until SIGTERM. Exits 5 when another controller took the lease over."""
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
    lease = acquire_lease(settings, _holder(settings), _LEASE_TTL_S, utc_now, stop)
    if lease is None:
        return 0  # told to stop while waiting
    process = build_controller(settings, lease.token)
    process.archives.remove_leftovers()
    server = _web_server(settings, create_app(process.plane))
    lost = threading.Event()

    def loop(name: str, run: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                run()
            except Exception:
                log.exception("%s ended", name)
                lost.set()
                server.should_exit = True

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    loops = [
        loop("controller", lambda: process.plane.controller.run(stop)),
        loop("aliases", lambda: process.plane.aliases.run(stop, _ALIAS_INTERVAL_S)),
        loop("lease", lambda: lease.keep(stop)),
    ]
    server.run()
    stop.set()
    process.plane.controller.wake()
    process.plane.aliases.wake()
    for thread in loops:
        thread.join(timeout=5.0)
    lease.release()
    return _EXIT_LOST_LEASE if lost.is_set() else 0
