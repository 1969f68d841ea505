"""Settings: environment `MODELWAY_*` over `modelway.toml` over defaults, as one frozen value.

`load_settings()` reads the environment and the file; `Settings(...)` reads neither, so a test or a caller that
builds one gets exactly what it names. Nothing here creates a file; `modelway.home.prepare_home` does.

The file is `modelway.toml` in the working directory, or the one that `MODELWAY_CONFIG` names. Its keys are the field
names below, at top level; relative paths in it are relative to the file.
"""

from __future__ import annotations

import difflib
import getpass
import hashlib
import itertools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from registry.errors import UsageError

ENV_PREFIX = "MODELWAY_"
CONFIG_ENV = "MODELWAY_CONFIG"
CONFIG_FILE = "modelway.toml"

# sun_path holds 108 bytes on Linux and 104 on macOS, its terminating NUL included.
SOCKET_PATH_BYTES = 103
# What is left for a name under `socket_dir`; longer names must be shortened by a digest.
SOCKET_NAME_BYTES = 48
_WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  read, never bound
_URLS = ("tracking_uri", "mlflow_store_url", "ledger_url", "control_url", "gateway_url")  # may hold a password: never printed whole


_OPERATORS_FILES = ("gateway_tls_certificate", "gateway_tls_key", "gateway_ca_file", "api_keys_file")
_SECRETS = ("api_key",)  # never printed, and handed to no child process


def _port(default: int, description: str) -> Any:
    return Field(default=default, ge=1, le=65535, description=description)


def base_url(host: str, port: int, *, tls: bool = False) -> str:
    """The URL at which a local client reaches a listener, also one that listens on every address."""
    host = _WILDCARD_HOSTS.get(host, host)
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _operating_system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return f"uid-{os.getuid()}"


class Settings(BaseSettings):
    """Everything that can be set, validated. Frozen."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=True)

    home: Path = Field(default=Path(".modelway"), description="Directory that holds all state; relative to the working directory.")

    gateway_host: str = Field(default="127.0.0.1", description="Address that the gateway listens on; clients reach nothing else.")
    gateway_port: int = _port(8080, "Port of the gateway.")
    gateway_concurrency: int = Field(default=2, ge=1, le=256, description="Worker threads of the gateway.")
    gateway_tls_certificate: Path | None = Field(
        default=None, description="PEM certificate chain of the gateway; with it the gateway speaks TLS only. Followed when it is replaced."
    )
    gateway_tls_key: Path | None = Field(default=None, description="PEM key of that certificate; readable by this user only.")
    gateway_url: str = Field(
        default_factory=lambda data: base_url(
            data["gateway_host"], data["gateway_port"], tls=data.get("gateway_tls_certificate") is not None
        ),
        description="Where the command line finds the gateway; by default on this machine. With TLS its host must be in the certificate.",
    )
    gateway_ca_file: Path | None = Field(
        default=None, description="PEM certificates that the command line trusts for the gateway; by default those of the system."
    )
    api_keys_file: Path | None = Field(
        default=None, description="File of API keys (modelway keys); with it the gateway answers nobody without a key. Followed."
    )
    api_key: str = Field(default="", description="The key that the command line itself sends to the gateway.")
    cors_allow_origins: str = Field(
        default="", description="Origins, separated by commas, whose web pages may call the gateway; * for all. Empty: none."
    )
    control_host: str = Field(default="127.0.0.1", description="Address that the control API listens on.")
    control_port: int = _port(8085, "Port of the control API.")
    control_url: str = Field(
        default_factory=lambda data: base_url(data["control_host"], data["control_port"]),
        description="Where the command line finds the control API; by default on this machine.",
    )
    mlflow_host: str = Field(default="127.0.0.1", description="Address that the embedded MLflow server listens on.")
    mlflow_port: int = _port(5000, "Port of the embedded MLflow server.")
    mlflow_allowed_hosts: str = Field(
        default="", description="Further names, separated by commas, by which clients reach the embedded MLflow server."
    )
    mlflow_store_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['home'] / 'mlflow.db'}",
        description="SQLAlchemy URL of the embedded MLflow server's store; by default SQLite in the home.",
    )
    tracking_uri: str | None = Field(
        default=None, description="An MLflow server of your own, instead of the embedded one. MLFLOW_TRACKING_URI is read too."
    )
    ledger_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['home'] / 'ledger.db'}",
        description="SQLAlchemy URL of the release ledger; by default SQLite in the home.",
    )

    nodes: int = Field(default=1, ge=1, le=64, description="Number of TorchServe nodes on this machine.")
    workers_per_version: int = Field(default=1, ge=1, le=64, description="Workers of each loaded version on each node.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Most requests that one worker answers together.")
    max_batch_delay_ms: int = Field(default=1, ge=0, le=10_000, description="Longest wait for a batch to fill, in milliseconds.")
    runtime_threads: int = Field(default=1, ge=1, le=256, description="Threads that one worker computes with.")
    gpus: int = Field(default=0, ge=0, le=64, description="GPUs that each node places its workers on, in turn; 0 computes on the CPU.")
    gpu_provider: Literal["cuda", "tensorrt"] = Field(
        default="cuda", description="What runs ONNX variants on a GPU; a worker without it refuses to serve."
    )
    cuda_graphs: bool = Field(default=False, description="Whether runs on a GPU are recorded and replayed; for fixed shapes, with cuda.")
    java_heap_mb: int = Field(default=512, ge=64, le=65_536, description="Largest heap of one node's Java, in MiB.")

    request_timeout_s: float = Field(default=30.0, gt=0, le=3600, description="Seconds after which the gateway gives a request up.")
    max_body_bytes: int = Field(default=16 << 20, ge=1024, le=2_000_000_000, description="Largest request body that the gateway accepts.")
    gateway_max_connections: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Client connections to the gateway in all; further ones are closed."
    )
    gateway_max_active_requests: int = Field(
        default=1024, ge=1, le=1_000_000, description="Requests in flight per release; further ones wait, see the next."
    )
    gateway_max_pending_requests: int = Field(
        default=1024, ge=1, le=1_000_000, description="Requests per release that wait for a connection; further ones are answered 503."
    )
    gateway_max_header_kib: int = Field(
        default=60, ge=1, le=8192, description="Largest request headers in KiB; larger ones are answered 431."
    )
    gateway_max_memory_mb: int = Field(
        default=1024, ge=128, le=1_000_000, description="Memory of the gateway, bodies included, in MiB; near it requests are answered 503."
    )
    gateway_header_timeout_s: float = Field(default=10.0, gt=0, le=3600, description="Seconds for a client to send a request's headers.")
    gateway_receive_timeout_s: float = Field(default=60.0, gt=0, le=3600, description="Seconds for a client to send a whole request.")
    gateway_idle_timeout_s: float = Field(default=300.0, gt=0, le=86_400, description="Seconds until an unused connection is closed.")
    access_log_max_mb: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Size in MiB at which the access log is moved to access.jsonl.1; at most twice that is kept.",
    )
    load_timeout_s: float = Field(default=120.0, gt=0, le=86_400, description="Seconds that a version may take to load.")
    drain_grace_s: float = Field(default=2.0, ge=0, le=3600, description="Seconds between a route's end and its version's unloading.")

    actor: str = Field(default_factory=_operating_system_user, min_length=1, description="Who is recorded with a release.")
    prometheus: bool = Field(default=False, description="Whether `up` also starts a Prometheus, if the program is found.")
    prometheus_port: int = _port(9090, "Port of that Prometheus, on 127.0.0.1.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passes: `load_settings` reads the other sources."""
        return (init_settings,)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return Path(os.path.abspath(home.expanduser()))  # noqa: PTH100  resolve() would follow a link that the user chose

    @field_validator(*_OPERATORS_FILES)
    @classmethod
    def _absolute_file(cls, path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  see above

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: str) -> str:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("it has characters that no key has")
        return key

    @field_validator(*_URLS)
    @classmethod
    def _has_scheme(cls, url: str | None) -> str | None:
        if url is not None and not urlsplit(url).scheme:
            raise ValueError("a URL with a scheme is needed")
        return url.rstrip("/") if url and urlsplit(url).scheme in ("http", "https") else url

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Self:
        if (self.gateway_tls_certificate is None) != (self.gateway_tls_key is None):
            raise ValueError("gateway_tls_certificate and gateway_tls_key need each other: set both or none")
        return self

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        listeners = list(self.listeners().items())
        for (key, (host, port)), (other, (other_host, other_port)) in itertools.combinations(listeners, 2):
            if port == other_port and (host == other_host or {host, other_host} & _WILDCARD_HOSTS.keys()):
                raise ValueError(f"{key} and {other} are both {port}; they must differ")
        return self

    def __repr_args__(self) -> Any:
        """The fields, without the passwords in URLs and without keys."""
        return [(key, _shown(key, value)) for key, value in super().__repr_args__()]

    def listeners(self) -> dict[str, tuple[str, int]]:
        """Key of the port -> (host, port), of every TCP listener that `up` opens with these settings."""
        listeners = {
            "gateway_port": (self.gateway_host, self.gateway_port),
            "control_port": (self.control_host, self.control_port),
        }
        if self.mlflow_is_embedded:
            listeners["mlflow_port"] = (self.mlflow_host, self.mlflow_port)
        if self.prometheus:
            listeners["prometheus_port"] = ("127.0.0.1", self.prometheus_port)
        return listeners

    @property
    def mlflow_is_embedded(self) -> bool:
        """Whether `up` runs an MLflow server."""
        return self.tracking_uri is None

    @property
    def mlflow_url(self) -> str:
        """The MLflow server that the platform uses: the user's own or the embedded one."""
        return self.tracking_uri or base_url(self.mlflow_host, self.mlflow_port)

    @property
    def mlflow_db(self) -> Path:
        """SQLite store of the embedded MLflow, when `mlflow_store_url` is not set."""
        return self.home / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """Artifacts of the embedded MLflow."""
        return self.home / "artifacts"

    @property
    def ledger_db(self) -> Path:
        """SQLite file of the ledger, when `ledger_url` is not set."""
        return self.home / "ledger.db"

    @property
    def archives(self) -> Path:
        """Archives by digest, and bundles that were fetched."""
        return self.home / "archives"

    @property
    def nodes_dir(self) -> Path:
        """One directory per node."""
        return self.home / "nodes"

    @property
    def gateway_dir(self) -> Path:
        """Envoy's configuration and routes."""
        return self.home / "gateway"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.home / "logs"

    @property
    def run_dir(self) -> Path:
        """Records and locks of running processes."""
        return self.home / "run"

    @property
    def socket_dir(self) -> Path:
        """Directory of all Unix sockets: in the home if their paths stay short enough, else in /tmp by a hash of the home.

        A name in it may have up to `SOCKET_NAME_BYTES` bytes.
        """
        inside = self.home / "sockets"
        if len(os.fsencode(inside)) + 1 + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        # Not tempfile.gettempdir(): all programs of one home must agree, whatever TMPDIR each of them has.
        return Path(f"/tmp/modelway-{os.getuid()}-{digest}")  # noqa: S108  made 0700, refused if another user owns it

    def environment(self) -> dict[str, str]:
        """The settings as `MODELWAY_*` variables, so that a child process loads the same ones. Holds passwords of URLs, no keys."""
        values = self.model_dump(mode="json", exclude=set(_SECRETS))
        return {f"{ENV_PREFIX}{key.upper()}": str(value) for key, value in values.items() if value is not None}


def _shown(key: str | None, value: Any) -> Any:
    """A setting's value as messages may have it."""
    if key in _SECRETS:
        return "***" if value else value
    return redacted(str(value)) if key in _URLS and value else value


def redacted(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process: `overrides` over the environment over the file over defaults.

    Raises:
        UsageError: A value is not valid, the file has an unknown key or is not TOML, or the file that
            `MODELWAY_CONFIG` names cannot be read.
    """
    environment = EnvSettingsSource(Settings)()
    if "tracking_uri" not in environment and (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        environment["tracking_uri"] = uri
    path = Path(os.environ.get(CONFIG_ENV) or CONFIG_FILE)
    values = _read_file(path, required=bool(os.environ.get(CONFIG_ENV)))
    file_keys = values.keys() - environment.keys() - overrides.keys()
    try:
        return Settings(**{**values, **environment, **overrides})
    except ValidationError as error:
        raise _usage_error(error, {key: f"{key} in {path}" for key in file_keys} | dict.fromkeys(overrides, "")) from None


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names that start with MODELWAY_ and set nothing: misspelt, most likely. With the nearest known name."""
    known = {f"{ENV_PREFIX}{key.upper()}" for key in Settings.model_fields} | {CONFIG_ENV}
    return tuple(
        f"{name} ({nearest(name, known)})" for name in sorted(environ) if name.startswith(ENV_PREFIX) and name.upper() not in known
    )


def nearest(name: str, known: set[str]) -> str:
    """A sentence that names the nearest known name, or all of them if none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"Did you mean {close[0]}?" if close else f"Known are: {', '.join(sorted(known))}."


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise UsageError(f"no such settings file ({path})", f"Create it, or unset {CONFIG_ENV}.") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the settings file ({path}: {error})", "Make it readable UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the settings file is not TOML ({path}: {error})", "Correct that line.") from error
    for key in values.keys() - Settings.model_fields.keys():
        raise UsageError(f"unknown setting ({key} in {path})", nearest(key, set(Settings.model_fields)))
    for key in ("home", *_OPERATORS_FILES):
        if isinstance(name := values.get(key), str):
            values[key] = path.absolute().parent / Path(name).expanduser()
    return values


def _usage_error(error: ValidationError, origins: Mapping[str, str]) -> UsageError:
    """The first thing that is wrong, in one line: which key, where it was set, its value, what is accepted."""
    # Values derived from a wrong one fail too; the one that was given is the one to name.
    first = next(problem for problem in error.errors() if problem["type"] != "default_factory_not_called")
    key = str(first["loc"][0]) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return UsageError(f"the settings do not fit together ({message})", "Change one of them.")
    if key not in Settings.model_fields:
        return UsageError(f"unknown setting ({key})", nearest(key, set(Settings.model_fields)))
    variable = f"{ENV_PREFIX}{key.upper()}"
    value = _shown(key, first["input"])
    description = Settings.model_fields[key].description or ""
    return UsageError(
        f"invalid setting ({origins.get(key) or variable} = {value}: {message[0].lower()}{message[1:]})",
        f"Change or remove it. It is: {description[0].lower()}{description[1:]}",
    )
