"""The composition root: settings become adapters, and adapters become the controller's process.

The only place that knows every package. What it makes is handed on as the small ports that each part asks for.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelway import mlflow_server
from modelway.home import prepare_home
from modelway.settings import Settings
from monitoring.metrics import ControllerMetrics
from monitoring.prometheus import ScrapeTarget, prometheus_yml, rules_yml
from monitoring.verdict import judge
from registry.bundle import write_durably
from registry.errors import Unavailable
from registry.ledger_sql import SqlLedger
from registry.mlflow_registry import MlflowRegistry
from registry.view import LedgerView
from serving import envoy, torchserve
from serving.api_keys import KeyFile
from serving.archive import RuntimeOptions
from serving.archive_cache import ArchiveCache
from serving.plan import PlanPolicy
from serving.process import ProcessSpec
from serving.runtime.modelway_runtime.gpu import CUDA, TENSORRT
from serving.verify import Finding, verify_aliases, verify_archives, verify_ledger, verify_serving

if TYPE_CHECKING:
    from serving.api import ControlPlane

CONTROLLER = "controller"


def utc_now() -> datetime:
    """The clock of everything that is composed here."""
    return datetime.now(UTC)


# --- registry


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingStore:
    """Where runs and versions are kept.

    Attributes:
        uri: MLflow's tracking URI.
        artifact_root: Where new experiments keep their artifacts; None leaves it to the server.
    """

    uri: str
    artifact_root: str | None


def open_tracking(settings: Settings) -> TrackingStore:
    """The user's MLflow; else the embedded one, through its server while that is up, else straight to its files."""
    if not settings.mlflow_is_embedded:
        return TrackingStore(uri=settings.mlflow_url, artifact_root=None)
    prepare_home(settings)
    uri = settings.mlflow_url if mlflow_server.ready(settings) else mlflow_server.store_url(settings)
    return TrackingStore(uri=uri, artifact_root=mlflow_server.artifact_root(settings))


def open_registry(tracking: TrackingStore) -> MlflowRegistry:
    """The registry behind a tracking store."""
    return MlflowRegistry(tracking.uri)


def read_releases(settings: Settings, model: str) -> list[dict[str, Any]]:
    """All releases of a model, straight from the ledger. Raises NotFound, Unavailable."""
    if settings.ledger_url.startswith("sqlite:///") and not settings.ledger_db.is_file():
        raise Unavailable(f"there is no ledger yet ({settings.ledger_db})", "Start the platform with `modelway up`.")
    view = LedgerView(SqlLedger(settings.ledger_url))
    return [record.to_json() for record in view.releases_of(model)]


# --- serving


def build_nodes(settings: Settings) -> list[torchserve.TorchServeConfig]:
    """One configuration per local node."""
    return [
        torchserve.TorchServeConfig(
            name=f"node-{index}",
            directory=settings.nodes_dir / f"node-{index}",
            socket_dir=settings.socket_dir / f"n{index}",
            log_file=settings.logs / f"node-{index}.log",
            heap_mb=settings.java_heap_mb,
            num_gpus=settings.gpus,
            batch_size=settings.batch_size,
            max_batch_delay_ms=settings.max_batch_delay_ms,
            max_request_bytes=settings.max_body_bytes,
            response_timeout_s=int(settings.request_timeout_s) + 10,
        )
        for index in range(settings.nodes)
    ]


class NodeKeys(Mapping[str, str]):
    """Inference socket -> key, read anew at each look: a node that was restarted has another one."""

    def __init__(self, nodes: list[torchserve.TorchServeNode]) -> None:
        self._nodes = {node.inference_socket: node for node in nodes}

    def __getitem__(self, socket_path: str) -> str:
        try:
            return self._nodes[socket_path].inference_key()
        except Unavailable:
            return ""  # the node is down; it gets its key into the routes when it is back

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def build_gateway(settings: Settings) -> tuple[envoy.EnvoyGateway, envoy.EnvoyConfig]:
    """The gateway's adapter and its configuration. Raises UsageError if its API keys or its certificate cannot be used."""
    config = envoy.EnvoyConfig(
        host=settings.gateway_host,
        port=settings.gateway_port,
        directory=settings.gateway_dir,
        socket_dir=settings.socket_dir,
        log=settings.logs / "gateway.log",
        access_log=settings.logs / "access.jsonl",
        concurrency=settings.gateway_concurrency,
        request_timeout_s=settings.request_timeout_s,
        receive_timeout_s=settings.gateway_receive_timeout_s,
        header_timeout_s=settings.gateway_header_timeout_s,
        idle_timeout_s=settings.gateway_idle_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        max_header_kib=settings.gateway_max_header_kib,
        max_connections=settings.gateway_max_connections,
        max_memory_mib=settings.gateway_max_memory_mb,
        max_active_requests=settings.gateway_max_active_requests,
        max_pending_requests=settings.gateway_max_pending_requests,
        tls_certificate=settings.gateway_tls_certificate,
        tls_key=settings.gateway_tls_key,
        api_keys=None if settings.api_keys_file is None else KeyFile(settings.api_keys_file),
        cors_allow_origins=tuple(origin.strip() for origin in settings.cors_allow_origins.split(",") if origin.strip()),
        access_log_max_bytes=settings.access_log_max_mb << 20,
        inference_keys=NodeKeys([torchserve.TorchServeNode(node) for node in build_nodes(settings)]),
    )
    envoy.check(config)
    return envoy.EnvoyGateway(config), config


def runtime_options(settings: Settings) -> RuntimeOptions:
    """How workers run a variant that nobody tuned."""
    if settings.gpus == 0:
        return RuntimeOptions(intra_op_threads=settings.runtime_threads)
    provider = {"cuda": CUDA, "tensorrt": TENSORRT}[settings.gpu_provider]
    return RuntimeOptions(intra_op_threads=settings.runtime_threads, provider=provider, cuda_graph=settings.cuda_graphs)


def plan_policy(settings: Settings) -> PlanPolicy:
    """The planner's numbers."""
    return PlanPolicy(
        num_workers=settings.workers_per_version, load_timeout_s=settings.load_timeout_s, drain_grace_s=settings.drain_grace_s
    )


# --- the controller's process


@dataclass(frozen=True, kw_only=True)
class ControllerProcess:
    """Everything that runs in the controller's process."""

    plane: ControlPlane
    ledger: SqlLedger
    archives: ArchiveCache


def build_controller(settings: Settings, fence: int | None) -> ControllerProcess:
    """Wire ledger, registry, nodes, gateway and measurements together."""
    from serving.aliases import AliasReconciler  # noqa: PLC0415  FastAPI costs 300 ms that other commands need not pay
    from serving.api import ControlPlane  # noqa: PLC0415
    from serving.controller import Controller  # noqa: PLC0415
    from serving.releases import ReleaseService  # noqa: PLC0415

    ledger = SqlLedger(settings.ledger_url)
    view = LedgerView(ledger)
    registry = MlflowRegistry(settings.mlflow_url)
    archives = ArchiveCache(settings.archives, registry, runtime_options(settings))
    nodes = {config.name: torchserve.TorchServeNode(config) for config in build_nodes(settings)}
    gateway, _ = build_gateway(settings)
    metrics, policy = ControllerMetrics(), plan_policy(settings)
    releases = ReleaseService(ledger=ledger, view=view, archives=archives, clock=utc_now)
    controller = Controller(
        ledger=ledger,
        view=view,
        archives=archives,
        engines=nodes,
        gateway=gateway,
        judge=judge,
        policy=policy,
        report=metrics,
        clock=utc_now,
        fence=fence,
    )
    aliases = AliasReconciler(
        ledger=ledger,
        view=view,
        registry=registry,
        releases=releases,
        clock=utc_now,
        on_release=controller.wake,
        on_answer=metrics.registry_answered,
        fence=fence,
    )

    def verify() -> list[Finding]:
        desired = view.state()
        return [
            verify_ledger(ledger),
            *verify_archives(desired, settings.archives),
            *verify_aliases(desired, registry.aliases),
            *verify_serving(desired, controller.observe(desired), utc_now(), policy),
        ]

    pages: dict[str, Callable[[], str]] = {"": metrics.text, "gateway": gateway.metrics_text}
    pages |= {f"nodes/{name}": node.metrics_text for name, node in nodes.items()}
    plane = ControlPlane(
        view=view,
        releases=releases,
        controller=controller,
        aliases=aliases,
        verify=verify,
        metrics=pages,
        allowed_hosts=sorted(
            {settings.control_host, _control_address(settings)[0], "127.0.0.1", "localhost", "[::1]", socket.gethostname()}
        ),
    )
    return ControllerProcess(plane=plane, ledger=ledger, archives=archives)


# --- Prometheus


def write_prometheus(settings: Settings) -> None:
    """Generate `prometheus.yml` and its rules in the home, durably."""
    host = ":".join(_control_address(settings))
    targets = [
        ScrapeTarget(job="modelway-controller", address=host, path="/metrics"),
        ScrapeTarget(job="modelway-gateway", address=host, path="/metrics/gateway"),
        *(ScrapeTarget(job=f"modelway-{node.name}", address=host, path=f"/metrics/nodes/{node.name}") for node in build_nodes(settings)),
    ]
    directory = settings.home / "prometheus"
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(directory / "rules.yml", rules_yml().encode())
    write_durably(directory / "prometheus.yml", prometheus_yml(targets).encode())


def _control_address(settings: Settings) -> tuple[str, str]:
    """Host and port by which others reach the control API; in a container it listens on every address."""
    url = urlsplit(settings.control_url)
    return url.hostname or settings.control_host, str(url.port or settings.control_port)


def prometheus_process(settings: Settings) -> ProcessSpec:
    """A Prometheus of our own, if the program is installed. Raises Unavailable."""
    program = shutil.which("prometheus")
    if program is None:
        raise Unavailable("the program prometheus is not installed", "Install it, or set MODELWAY_PROMETHEUS=false.")
    write_prometheus(settings)
    directory = settings.home / "prometheus"
    return ProcessSpec(
        name="prometheus",
        argv=(
            program,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{settings.prometheus_port}",
        ),
        cwd=directory,
        env={},
        log=settings.logs / "prometheus.log",
    )
