"""The files that Envoy follows, and the table that they were rendered from. Written by write, fsync, rename."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry.bundle import write_durably
from registry.errors import Unavailable, UsageError
from registry.signature import Signature
from serving.envoy.bootstrap import bootstrap
from serving.envoy.clusters import clusters
from serving.envoy.config import EnvoyConfig
from serving.envoy.routes import routes
from serving.envoy.tls import check_certificate, secret
from serving.routes import Backend, ChannelRoute, RouteTable

_DIRECTORY_MODE = 0o700  # the nodes' keys and the digests of the clients' are in these files


def clusters_bytes(table: RouteTable, config: EnvoyConfig) -> bytes:
    """Content of the clusters file. Raises UsageError for an inference key that is no header value."""
    return _json_bytes(clusters(table, config))


def routes_bytes(table: RouteTable, config: EnvoyConfig) -> bytes:
    """Content of the routes file."""
    return _json_bytes(routes(table, config))


def table_bytes(table: RouteTable) -> bytes:
    """Content of the table file."""
    return _json_bytes(table.to_json())


def _json_bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


def grown(table: RouteTable, before: RouteTable | None) -> RouteTable:
    """The table with the backends of the one before kept: what both tables' routes can live with."""
    kept = {backend.release_id: backend for backend in (before.backends if before else ())}
    merged = kept | {backend.release_id: backend for backend in table.backends}
    return replace(table, backends=tuple(merged[release_id] for release_id in sorted(merged)))


def read_table(config: EnvoyConfig) -> RouteTable | None:
    """The table on disk; None if there is none, or none that can be read."""
    try:
        data = json.loads(config.table_file.read_bytes())
        return RouteTable(
            backends=tuple(_backend(item) for item in data["backends"]),
            channels=tuple(_channel(item) for item in data["channels"]),
        )
    # Whoever edited the file by hand may have left anything in it; all of it means the same: not our table.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError, UsageError):
        return None


def _backend(data: Mapping[str, Any]) -> Backend:
    return Backend(
        release_id=int(data["release_id"]),
        model=str(data["model"]),
        version=int(data["version"]),
        variant=str(data["variant"]),
        engine_version=str(data["engine_version"]),
        signature=Signature.from_json(data["signature"]),
        sockets=tuple(str(socket) for socket in data["sockets"]),
        worker_sockets=tuple(str(socket) for socket in data["worker_sockets"]),
    )


def _channel(data: Mapping[str, Any]) -> ChannelRoute:
    percent = data["candidate_percent"]
    if not isinstance(percent, int | float):
        raise TypeError(percent)
    return ChannelRoute(
        model=str(data["model"]),
        channel=str(data["channel"]),
        live=int(data["live"]),
        candidate=None if data["candidate"] is None else int(data["candidate"]),
        candidate_percent=percent,  # as it is: 5 and 5.0 are one share and two digests
    )


def written_digest(config: EnvoyConfig) -> str | None:
    """Digest of the table on disk if every file is, byte for byte, what that table renders to; else None."""
    table = read_table(config)
    if table is None:
        return None
    wanted = {
        config.clusters_file: clusters_bytes(table, config),
        config.routes_file: routes_bytes(table, config),
        config.table_file: table_bytes(table),
    }
    return table.digest if all(read_bytes(path) == content for path, content in wanted.items()) else None


def read_bytes(path: Path) -> bytes | None:
    """Content of a file; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Replace a file, durably and by rename. Raises Unavailable if the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=_DIRECTORY_MODE)
        write_durably(path, content, mode=0o600)
    except OSError as error:
        raise Unavailable(f"cannot write {path} ({error})", "Free space, or make the directory writable.") from error


def prepare(config: EnvoyConfig) -> None:
    """Write the bootstrap and what Envoy follows, rendered anew from the table on disk. Idempotent; before every start.

    Anew, because the files may be of a time when no API key was asked for: Envoy must not serve them until a controller
    comes and looks. Without a table that can be read the files stay as they are, or become an empty table.

    Raises:
        UsageError: If the TLS certificate or the API keys cannot be used.
        Unavailable: If a directory cannot be written.
    """
    check(config)
    try:
        for directory in (config.directory, config.socket_dir, config.log.parent, config.access_log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        config.directory.chmod(_DIRECTORY_MODE)
    except OSError as error:
        raise Unavailable(f"cannot make the gateway's directories ({error})", "Make the directory writable.") from error
    write(config.bootstrap_file, _json_bytes(bootstrap(config)))
    if config.tls_certificate is not None and config.tls_key is not None:
        write(config.tls_file, _json_bytes(secret(config.tls_certificate, config.tls_key)))
    table = read_table(config)
    if table is None and config.clusters_file.is_file() and config.routes_file.is_file() and config.api_keys is None:
        return
    table = table or RouteTable()
    write(config.table_file, table_bytes(table))
    write(config.clusters_file, clusters_bytes(table, config))
    write(config.routes_file, routes_bytes(table, config))


def check(config: EnvoyConfig) -> None:
    """Raise UsageError if the files that the operator gave cannot be used: certificate, key, API keys."""
    if config.tls_certificate is not None and config.tls_key is not None:
        check_certificate(config.tls_certificate, config.tls_key, datetime.now(UTC))
    if config.api_keys is not None:
        config.api_keys.current()
