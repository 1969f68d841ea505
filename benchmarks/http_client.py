"""The load generator of all servers: raw HTTP/1.1 with keep-alive, in a process of its own that lives as long as the run.

Closed loop: each connection sends its next request when the last one is answered. Open loop: requests are due at the times
of a Poisson process, whether or not the last ones were answered, and latency counts from the time at which one was due
(otherwise a server that stalls also stops the clock). Every status is checked, and the numbers of every 20th answer.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from registry.errors import TimedOut, Unavailable

GRACE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go, and what they are.

    Attributes:
        server: The server's name in the tables.
        encoding: One of `benchmarks.encodings.Encoding`.
        samples: The file of `benchmarks.workloads.save_samples` with the inputs and the answers that are right.
        port: TCP port on the loopback address; 0 where `sockets` are used.
        sockets: Unix sockets; connections take turns.
        headers: More headers of each request.
    """

    server: str
    encoding: str
    path: str
    samples: str
    port: int = 0
    sockets: Sequence[str] = ()
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Load:
    """One measurement to make.

    Attributes:
        connections: Open connections; in an open loop the most requests in flight, the others wait in the client.
        rate_per_s: Arrivals per second of an open loop; 0 is a closed loop.
    """

    connections: int
    duration_s: float
    warmup_s: float
    rate_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it. `client_cpu` is the load generator's own use of one core, 0 to 1."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int = 0
    first_failure: str = ""
    client_cpu: float = 0.0


class LoadClient:
    """The client process. A context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LoadClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def measure(self, target: Target, load: Load) -> Measured:
        """Make one measurement. Raises Unavailable, TimedOut if the client itself does not work."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"target": asdict(target), "load": asdict(load)}).encode() + b"\n")
        process.stdin.flush()
        timeout_s = load.warmup_s + load.duration_s + 3 * GRACE_S
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        if not ready:
            self._stop()
            raise TimedOut(f"the load generator did not answer in {timeout_s:g} s ({target.server})")
        line = process.stdout.readline()
        if not line:
            self._stop()
            raise Unavailable(f"the load generator ended ({target.server})", "Its words are above.")
        answer: dict[str, Any] = json.loads(line)
        return Measured(**answer)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            argv = [sys.executable, "-m", "benchmarks.load_generator"]
            root = Path(__file__).parent.parent
            env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=env)
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
