"""The control API: releases and what became of them, over HTTP. The command line is one client of it.

Errors are `{"error": "...", "next_step": "...", "reasons": [...]}` with the status of the error tree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from registry.errors import ModelwayError, NotFound, UsageError
from registry.names import PRODUCTION, ModelVersion, check_channel, check_model_name, check_variant
from registry.release import ReleaseRecord
from registry.strategy import DEFAULT_CANARY, Strategy, StrategyKind, parse_canary_steps
from registry.view import LedgerView
from serving.aliases import AliasReconciler
from serving.controller import Controller
from serving.releases import Prepared, PromotionRequest, ReleaseService, RollbackRequest
from serving.status import describe_platform
from serving.verify import Finding

MAX_WAIT_S = 30.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    channel: str = Field(PRODUCTION, description="The channel that is changed.")
    reason: str = Field("", max_length=2000, description="Why; kept in the ledger.")
    actor: str = Field(min_length=1, max_length=200, description="Who; kept in the ledger.")
    expect: int | None = Field(None, description="The release that the caller believes to be the channel's newest.")
    dry_run: bool = Field(False, description="Answer the steps and change nothing.")


class PromotionBody(_Body):
    """A promotion."""

    version: int = Field(ge=1, description="The version to promote.")
    variant: str | None = Field(None, description="The variant; by default the fastest one whose certificate passes.")
    strategy: StrategyKind | None = Field(None, strict=False, description="By default canary, or immediate when nothing is live.")
    steps: str | None = Field(None, description=f"Canary steps, for example {DEFAULT_CANARY}.")
    min_samples: int = Field(50, ge=1, description="Answered requests on each side that a verdict needs.")
    hold_s: float = Field(600.0, ge=0, strict=False, description="Seconds without a verdict before the release is aborted.")
    allow_signature_change: bool = Field(False, description="Promote although clients of the live version could break.")


class RollbackBody(_Body):
    """A rollback."""

    to: int | None = Field(None, ge=1, description="A version that was live before; by default the previous live one.")


class ReleaseAnswer(BaseModel):
    """What a decision led to: the release and whether it is new, or the steps of a dry run."""

    created: bool
    release: dict[str, Any] | None = None
    steps: list[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlPlane:
    """All that the API speaks for.

    Attributes:
        verify: Checks everything now.
        metrics: Name of a metrics page ("" is the controller's own, "gateway", "nodes/<name>") -> its renderer.
        allowed_hosts: Host names that requests may name, against DNS rebinding from a browser.
    """

    view: LedgerView
    releases: ReleaseService
    controller: Controller
    aliases: AliasReconciler
    verify: Callable[[], Sequence[Finding]]
    metrics: Mapping[str, Callable[[], str]]
    allowed_hosts: Sequence[str]


def create_app(plane: ControlPlane) -> FastAPI:
    """The ASGI application. It owns no state; `plane` does."""
    app = FastAPI(title="Modelway control API", version=package_version("modelway"))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(plane.allowed_hosts))
    _answer_errors(app)
    _add_releases(app, plane)
    _add_operations(app, plane)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ModelwayError)
    def modelway_error(_: Request, error: ModelwayError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "body"
        return error_response(UsageError(f"{where}: {first['msg']} ({str(first.get('input'))[:200]!r})", "The API is described at /docs."))

    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    @app.exception_handler(405)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{error.detail} ({request.method} {request.url.path})"
        return JSONResponse(
            {"error": text, "next_step": "The API is described at /docs.", "reasons": []}, error.status_code, headers=error.headers
        )


def error_response(error: ModelwayError) -> JSONResponse:
    """The JSON form of one of our errors."""
    body = {"error": error.what, "next_step": error.next_step, "reasons": list(getattr(error, "reasons", ()))}
    return JSONResponse(body, error.http_status)


def _add_releases(app: FastAPI, plane: ControlPlane) -> None:
    @app.get("/v1/models/{model}/releases")
    def list_releases(model: str, channel: str | None = None) -> list[dict[str, Any]]:
        """All releases of a model with their events, oldest first."""
        records = plane.view.releases_of(check_model_name(model))
        return [record.to_json() for record in records if channel in (None, record.release.channel)]

    @app.get("/v1/models/{model}/releases/{release_id}")
    def get_release(model: str, release_id: int, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0) -> dict[str, Any]:
        """One release; with `wait_s`, as soon as its roll-out has ended, at the latest after that many seconds."""
        return plane.controller.wait_settled(check_model_name(model), release_id, wait_s).to_json()

    @app.post("/v1/models/{model}/releases", status_code=201)
    def promote(model: str, body: PromotionBody, response: Response) -> ReleaseAnswer:
        """Promote a version to a channel."""
        request = PromotionRequest(
            model_version=ModelVersion(check_model_name(model), body.version),
            channel=check_channel(body.channel),
            variant=check_variant(body.variant) if body.variant is not None else None,
            strategy=parse_strategy(body),
            actor=body.actor,
            reason=body.reason,
            expect=body.expect,
            allow_signature_change=body.allow_signature_change,
        )
        prepared = plane.releases.prepare_promotion(request)
        if body.dry_run:
            return _dry_run(plane, prepared, response)
        return _decided(plane, plane.releases.decide(prepared), response)

    @app.post("/v1/models/{model}/rollback", status_code=201)
    def rollback(model: str, body: RollbackBody, response: Response) -> ReleaseAnswer:
        """Go back to a version that was live before. Needs neither the registry nor a verdict."""
        request = RollbackRequest(
            model=check_model_name(model),
            channel=check_channel(body.channel),
            to=body.to,
            actor=body.actor,
            reason=body.reason,
            expect=body.expect,
        )
        if body.dry_run:
            return _dry_run(plane, plane.releases.prepare_rollback(request), response)
        return _decided(plane, plane.releases.rollback(request), response)


def parse_strategy(body: PromotionBody) -> Strategy | None:
    """The strategy that a promotion asks for; None leaves it to the platform. Raises UsageError."""
    kind = body.strategy or (StrategyKind.CANARY if body.steps else None)
    if kind is None:
        return None
    steps = parse_canary_steps(body.steps or DEFAULT_CANARY) if kind is StrategyKind.CANARY or body.steps else ()
    return Strategy(kind=kind, steps=steps, min_samples=body.min_samples, hold_s=body.hold_s)


def _dry_run(plane: ControlPlane, prepared: Prepared, response: Response) -> ReleaseAnswer:
    response.status_code = 200
    if prepared.existing is not None:
        return ReleaseAnswer(created=False, release=prepared.existing.to_json(), steps=[])
    return ReleaseAnswer(created=False, steps=[str(step) for step in plane.controller.preview(prepared.draft)])


def _decided(plane: ControlPlane, decision: tuple[ReleaseRecord, bool], response: Response) -> ReleaseAnswer:
    record, created = decision
    if created:
        plane.controller.wake()
    else:
        response.status_code = 200
    return ReleaseAnswer(created=created, release=record.to_json())


def _add_operations(app: FastAPI, plane: ControlPlane) -> None:
    @app.middleware("http")
    async def no_store(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["cache-control"] = "no-store"
        return response

    @app.get("/v1/health")
    def health() -> dict[str, bool]:
        """Whether the controller has had a look at the world since it started."""
        return {"ready": plane.controller.last_look is not None}

    @app.get("/v1/status")
    def status() -> dict[str, Any]:
        """Components, channels, and what is still to do."""
        return describe_platform(
            plane.view.state(), plane.controller.last_look, plane.aliases.aliases, registry_reachable=plane.aliases.reachable
        )

    @app.get("/v1/verify")
    def verify() -> list[dict[str, Any]]:
        """Ledger chain, archive digests, alias = ledger = route = nodes."""
        return [finding.to_json() for finding in plane.verify()]

    @app.get("/metrics", response_class=PlainTextResponse)
    def own_metrics() -> PlainTextResponse:
        """The controller's own metrics, in Prometheus' text format."""
        return PlainTextResponse(plane.metrics[""](), media_type="text/plain; version=0.0.4")

    @app.get("/metrics/{page:path}", response_class=PlainTextResponse)
    def metrics(page: str) -> PlainTextResponse:
        """The gateway's (`gateway`) and the nodes' (`nodes/<name>`) metrics, passed on from their Unix sockets."""
        if page not in plane.metrics:
            known = ", ".join(f"/metrics/{name}" for name in plane.metrics if name)
            raise NotFound(f"no such metrics page ({page})", f"Pages are: /metrics, {known}.")
        return PlainTextResponse(plane.metrics[page](), media_type="text/plain; version=0.0.4")
