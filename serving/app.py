"""Puts the API together. Knows neither where the model comes from nor how the process is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware

import recsys
from feature_store import OnlineStore
from serving.admission import AdmissionMiddleware, overloaded_response
from serving.batching import OverloadedError
from serving.context import ServingContext
from serving.middleware import BodyLimitMiddleware, ObservationMiddleware, SecurityHeadersMiddleware
from serving.problems import install_handlers, install_schema
from serving.routes import admin, catalog, events, operations, profiles, recommend, users
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings

_DESCRIPTION = (
    "Recommendations by a generative model that reads a user's history as a sequence of semantic IDs and generates "
    "the next item, code by code, within the catalogue. Errors are `application/problem+json` and name the fix."
)


def create_app(
    runtime: RecommenderRuntime,
    store: OnlineStore,
    settings: ServingSettings | None = None,
    *,
    seed: Callable[[], object] | None = None,
    bundles: Path | None = None,
) -> FastAPI:
    """The API and the dashboard over one model and one store; the app closes the store when it stops.

    Middleware, outermost first: observation (so that it sees every status), security headers, admission, body limit.

    Args:
        runtime: the model.
        store: users and events.
        settings: sizes and times.
        seed: puts the data set's histories into the store; repeated until it succeeds.
        bundles: further models are loaded from below it.
    """
    settings = settings or ServingSettings()
    context = ServingContext(runtime, store, settings, seed, bundles)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await context.start()
        yield
        await context.stop()

    app = FastAPI(
        title="recsys",
        version=recsys.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its scripts from a CDN
        redoc_url=None,
        middleware=[
            Middleware(ObservationMiddleware, metrics=context.metrics),
            Middleware(SecurityHeadersMiddleware),
            Middleware(AdmissionMiddleware, admission=context.admission, least_retry_s=settings.retry_after_s),
            Middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes),
        ],
    )
    app.state.context = context
    install_handlers(app, retry_after_s=settings.retry_after_s)

    async def on_overload(_: Request, error: Exception) -> Response:
        assert isinstance(error, OverloadedError)
        return overloaded_response(error, settings.retry_after_s)

    app.add_exception_handler(OverloadedError, on_overload)
    for routes in (recommend, events, catalog, profiles, users, operations, admin):
        app.include_router(routes.router)
    install_schema(app)

    pages = Path(str(files("serving").joinpath("dashboard")))

    @app.get("/", include_in_schema=False)
    async def dashboard() -> FileResponse:
        return FileResponse(pages / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(pages / "docs.html")

    app.mount("/dashboard", StaticFiles(directory=pages), name="dashboard")
    return app
