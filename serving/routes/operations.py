"""What operators and the dashboard ask: health, metrics, the served model and its evaluation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from serving import presentation
from serving.context import Context, ServingContext
from serving.lifecycle import Lifecycle, StoreProbe, judge
from serving.metrics import CONTENT_TYPE
from serving.problems import responses
from serving.schemas.operations import Health, ModelResponse

router = APIRouter(tags=["operations"])


@router.get("/healthz", operation_id="health")
async def health() -> Health:
    """The process answers. Restart it when this fails."""
    return Health(status="ok")


_NOT_YET: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Not ready for requests."}}


@router.get("/startupz", operation_id="startup", responses=_NOT_YET)
async def startup(request: Request, response: Response, context: Context) -> Health:
    """The service has started: the model is warm. Until then, look at nothing else."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    if lifecycle.phase == "starting":
        return _unavailable(response, context, {"phase": "starting"})
    return Health(status="ok")


@router.get("/readyz", operation_id="ready", responses=_NOT_YET)
async def ready(request: Request, response: Response, context: Context) -> Health:
    """Send traffic only while this is 200: not while the service ends, and not when it could make no list."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    probe: StoreProbe = request.app.state.store_probe
    has_model = context.runtime.catalog.num_items > 0
    store_answers = await probe.answers()
    if not store_answers:
        context.metrics.count_store_error()
    # The popular items of a model need no store.
    found = judge(phase=lifecycle.phase, has_model=has_model, store_answers=store_answers, has_fallback=has_model)
    if found.state == "unavailable":
        return _unavailable(response, context, found.checks)
    return Health(status=found.state, checks=found.checks)


def _unavailable(response: Response, context: ServingContext, checks: dict[str, str]) -> Health:
    response.status_code = 503
    response.headers["Retry-After"] = str(context.settings.retry_after_s)
    return Health(status="unavailable", checks=checks)


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(503)},
)
async def metrics(context: Context) -> Response:
    """Metrics for Prometheus."""
    return Response(await context.fleet.render_metrics(), media_type=CONTENT_TYPE)


@router.get("/v1/model", operation_id="get_model")
async def get_model(context: Context) -> ModelResponse:
    """What is being served."""
    runtime = context.runtime
    info = runtime.info
    return ModelResponse(
        name=info.name,
        model_version=info.model_version,
        created_at=info.created_at,
        num_items=runtime.num_listed,
        catalog_version=runtime.catalog_version,
        catalog_columns=[name for name in runtime.catalog.frame.columns if name not in presentation.SUMMARY_COLUMNS],
        libraries=dict(info.libraries),
        objectives=dict(runtime.objectives),
        has_intents=runtime.intents is not None,
        loaded=[model.version for model, _ in context.models.states()],
    )


@router.get("/v1/report", operation_id="get_report")
async def get_report(context: Context) -> dict[str, Any]:
    """The offline evaluation of the served model and its baselines, as in report.json."""
    return dict(context.runtime.report)
