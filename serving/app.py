"""Puts the API together. Knows neither where the model comes from nor how the process is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import recsys
from feature_store import OnlineStore
from feature_store.offline import OfflineStore
from recsys.bundle import Bundle
from serving.admission import AdmissionMiddleware, overloaded_response
from serving.batching import OverloadedError
from serving.context import ServingContext
from serving.fleet import EndingError
from serving.guard.audit import AuditLog, AuditMiddleware
from serving.guard.keys import KeyRing
from serving.guard.limiter import Buckets, RateLimiter
from serving.guard.middleware import HostMiddleware, KeyMiddleware, check_role
from serving.guard.openapi import describe_guards
from serving.lifecycle import Lifecycle, StoreProbe
from serving.middleware import REQUEST_ID, BodyLimitMiddleware, ObservationMiddleware, SecurityHeadersMiddleware
from serving.offline import OfflineExport
from serving.problems import install_handlers, install_schema, problem_response
from serving.routes import admin, catalog, events, insight, items, lookups, operations, profiles, recommend, users
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter
from serving.tracing import TracingMiddleware

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_DESCRIPTION = (
    "Recommendations by a generative model that reads a user's history as a sequence of semantic IDs and generates "
    "the next item, code by code, within the catalogue. Errors are `application/problem+json` and name the fix."
)


def create_app(
    runtime: RecommenderRuntime,
    store: OnlineStore,
    settings: ServingSettings | None = None,
    *,
    seeding: Seeding | None = None,
    bundles: Path | None = None,
    read_bundle: Callable[[Path], Bundle] = Bundle.load,
    keys: KeyRing | None = None,
    loopback_only: bool = False,
    tracer_provider: TracerProvider | None = None,
    offline: OfflineExport | None = None,
    slates: SlateWriter | None = None,
    buckets: Buckets | None = None,
    outcomes: OfflineStore | None = None,
) -> FastAPI:
    """The API and the dashboard over one model and one store; the app closes the store when it stops.

    Middleware, outermost first: traces, observation (so that it sees every status), security headers, the host,
    foreign pages, the audit log, keys and rates, admission, body limit. Roles are judged once the operation is known.

    Args:
        runtime: the model.
        store: users and events.
        settings: sizes and times.
        seeding: puts the data set's histories into the store; None: it is left as it is.
        bundles: further models are loaded from below it.
        read_bundle: reads and verifies one of them.
        keys: who may ask for what; without, everybody may ask for everything.
        tracer_provider: where spans go; None traces nothing.
        loopback_only: answer only requests that name this machine as the host.
        offline: writes the offline store while the app runs; None: nobody here does.
        slates: takes the lists that were shown; None: they are not logged.
        buckets: of the clients' rates, where they are shared with other processes.
        outcomes: the offline store in which experiments are counted, whoever writes it; None: nobody says where.

    Raises:
        ConfigError: the audit file cannot be written, or an experiment asks for what the model does not do.
    """
    settings = settings or ServingSettings()
    context = ServingContext(runtime, store, settings, seeding, bundles, offline, slates, outcomes, read_bundle)
    lifecycle = Lifecycle()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await context.start()
        lifecycle.phase = "serving"
        yield
        lifecycle.phase = "draining"
        await context.stop()

    app = FastAPI(
        title="recsys",
        version=recsys.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its scripts from a CDN
        redoc_url=None,
        dependencies=[] if keys is None else [Depends(check_role)],
        middleware=_middleware(context, keys, loopback_only, tracer_provider, buckets),
    )
    app.state.context = context
    app.state.has_one_user = loopback_only and keys is None
    app.state.lifecycle = lifecycle
    app.state.store_probe = StoreProbe(store)
    install_handlers(app, retry_after_s=settings.retry_after_s, on_store_error=context.metrics.count_store_error)

    async def on_overload(_: Request, error: Exception) -> Response:
        assert isinstance(error, OverloadedError)
        return overloaded_response(error, settings.retry_after_s)

    async def on_ending(_: Request, error: Exception) -> Response:
        return problem_response(503, f"{error}; ask again", headers={"Retry-After": str(settings.retry_after_s)})

    app.add_exception_handler(OverloadedError, on_overload)
    app.add_exception_handler(EndingError, on_ending)
    for routes in (recommend, lookups, events, catalog, items, profiles, users, operations, insight, admin):
        app.include_router(routes.router)
    install_schema(app, describe_guards)

    pages = Path(str(files("serving").joinpath("dashboard")))

    @app.get("/", include_in_schema=False)
    async def dashboard() -> FileResponse:
        return FileResponse(pages / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(pages / "docs.html")

    app.mount("/dashboard", StaticFiles(directory=pages), name="dashboard")
    return app


def _middleware(
    context: ServingContext,
    keys: KeyRing | None,
    loopback_only: bool,
    tracer_provider: TracerProvider | None,
    buckets: Buckets | None,
) -> list[Middleware]:
    settings, guard = context.settings, context.settings.guard
    stack = [] if tracer_provider is None else [Middleware(TracingMiddleware, provider=tracer_provider)]
    stack += [Middleware(ObservationMiddleware, metrics=context.metrics), Middleware(SecurityHeadersMiddleware)]
    if loopback_only:
        stack.append(Middleware(HostMiddleware, origins=guard.cors_origins))
    if guard.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=guard.cors_origins,
                allow_methods=("GET", "POST", "PUT", "DELETE"),
                allow_headers=("Authorization", "Content-Type", REQUEST_ID),
                expose_headers=(REQUEST_ID, "Retry-After", "RateLimit", "RateLimit-Policy"),
            )
        )
    stack.append(Middleware(AuditMiddleware, audit=AuditLog(guard.audit_file, guard.audit_secret)))
    if keys is not None:
        rate = guard.requests_per_second
        limiter = None if rate is None else RateLimiter(rate, guard.burst, buckets=buckets)
        stack.append(Middleware(KeyMiddleware, keys=keys, limiter=limiter, metrics=context.metrics))
    stack += [
        Middleware(AdmissionMiddleware, admission=context.admission, least_retry_s=settings.retry_after_s),
        Middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, timeout_s=guard.body_timeout_s),
    ]
    return stack
