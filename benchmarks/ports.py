"""TCP ports that nobody listens on now."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(num_ports: int) -> list[int]:
    """Different free ports of the loopback address."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
