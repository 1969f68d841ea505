"""How one Envoy gateway is set up, and where its files are. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import UsageError
from serving.api_keys import ApiKey, KeyFile
from serving.envoy.cors import check_origin

# sockaddr_un.sun_path holds 108 bytes with the final zero.
_MAX_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvoyConfig:
    """One gateway.

    Attributes:
        host: Address that clients reach it at.
        port: TCP port that clients reach it at.
        directory: Where its bootstrap, route and cluster files lie; nobody else's.
        socket_dir: Where its admin socket lies; a short path.
        log: File that its own output is appended to.
        access_log: File with one JSON line per request, never with payload.
        concurrency: Worker threads.
        request_timeout_s: Longest time for an answer of a model; below the engine's own, which kills the worker.
        connect_timeout_s: Longest time to connect to a node's socket.
        receive_timeout_s: Longest time for a client to send a whole request.
        header_timeout_s: Longest time for a client to send a request's headers.
        idle_timeout_s: A kept-alive connection without a request is closed after this.
        max_body_bytes: Larger request bodies are answered 413.
        max_header_kib: Larger request headers are answered 431.
        max_connections: Client connections in all; further ones are closed.
        max_memory_mib: Memory that it may use, request bodies included; near it new requests are answered 503.
        max_active_requests: Requests in flight per release; further ones wait or are answered 503 with Retry-After.
        max_pending_requests: Requests that wait for a connection to a node, per release.
        inference_keys: Node's socket -> bearer key. Read at each rendering, so a mapping that changes is followed:
            after a change the gateway reports no digest, until a table is applied again.
        tls_certificate: PEM chain that clients are shown; followed when it is replaced. None for plain HTTP.
        tls_key: PEM key of that certificate.
        api_keys: The keys, one of which a client must send; None if nobody has to. Read at each rendering, like inference_keys.
        cors_allow_origins: Origins whose pages may read answers; `*` for all.
        access_log_max_bytes: The access log is moved aside when it is larger.
        apply_timeout_s: Longest time for Envoy to take a table.
        admin_timeout_s: Longest time for an answer of the admin socket.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    directory: Path
    socket_dir: Path
    log: Path
    access_log: Path
    concurrency: int = 2
    request_timeout_s: float = 60.0
    connect_timeout_s: float = 1.0
    receive_timeout_s: float = 60.0
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 300.0
    max_body_bytes: int = 64 << 20
    max_header_kib: int = 60
    max_connections: int = 10_000
    max_memory_mib: int = 1024
    max_active_requests: int = 1024
    max_pending_requests: int = 1024
    inference_keys: Mapping[str, str] = field(default_factory=dict)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    api_keys: KeyFile | None = None
    cors_allow_origins: tuple[str, ...] = ()
    access_log_max_bytes: int = 100 << 20
    apply_timeout_s: float = 5.0
    admin_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise UsageError(f"invalid gateway port ({self.port})", "Use a free port from 1 to 65535.")
        if self.concurrency < 1:
            raise UsageError(f"invalid gateway concurrency ({self.concurrency})", "Use 1 or more worker threads.")
        for name in ("request_timeout_s", "connect_timeout_s", "receive_timeout_s", "header_timeout_s", "idle_timeout_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"invalid gateway {name} ({getattr(self, name)})", "Use a number of seconds above 0.")
        for name in ("max_body_bytes", "max_memory_mib", "max_connections", "max_active_requests", "max_pending_requests"):
            if not 1 <= getattr(self, name) < 1 << 32:
                raise UsageError(f"invalid gateway {name} ({getattr(self, name)})", "Use a number from 1 to 4294967295.")
        if not 1 <= self.max_header_kib <= 8192:
            raise UsageError(f"invalid gateway max_header_kib ({self.max_header_kib})", "Use a number from 1 to 8192.")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("the gateway has a TLS certificate or a TLS key, not both", "Name both files, or none.")
        for origin in self.cors_allow_origins:
            check_origin(origin)
        if len(str(self.admin_socket).encode()) > _MAX_SOCKET_PATH_BYTES:
            raise UsageError(
                f"the gateway's admin socket has too long a path ({self.admin_socket})",
                f"Unix sockets allow {_MAX_SOCKET_PATH_BYTES} bytes: use a shorter socket directory.",
            )

    @property
    def tls(self) -> bool:
        """Whether clients are met with TLS."""
        return self.tls_certificate is not None

    @property
    def tls_file(self) -> Path:
        """Where Envoy finds the names of the certificate's files (SDS)."""
        return self.directory / "tls" / "secret.json"

    @property
    def admin_socket(self) -> Path:
        """Unix socket of Envoy's admin interface; only the user may reach it."""
        return self.socket_dir / "gateway-admin.sock"

    @property
    def bootstrap_file(self) -> Path:
        """What Envoy is started with."""
        return self.directory / "bootstrap.json"

    @property
    def clusters_file(self) -> Path:
        """Clusters, followed by Envoy (CDS). Alone in its directory, as Envoy reads it again at each rename there."""
        return self.directory / "clusters" / "clusters.json"

    @property
    def routes_file(self) -> Path:
        """Routes, followed by Envoy (RDS). Alone in its directory, for the same reason."""
        return self.directory / "routes" / "routes.json"

    @property
    def table_file(self) -> Path:
        """The table that the two above were rendered from, so that a new controller can tell whether they still are."""
        return self.directory / "table.json"

    def keys(self) -> tuple[ApiKey, ...] | None:
        """The API keys to enforce now; None if nobody needs one."""
        return None if self.api_keys is None else self.api_keys.current()

    def bearer(self, socket: str) -> str:
        """The authorization header for a node; empty if it needs none. Raises UsageError for a key that is no header value."""
        key = self.inference_keys.get(socket, "")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"the inference key of {socket} has characters that no header can hold", "Restart the node for a new key.")
        return f"Bearer {key}" if key else ""
