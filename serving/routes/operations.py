"""What operators and the dashboard ask: health, metrics, the served model and its evaluation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from feature_store import StoreUnavailableError
from serving.context import Context
from serving.metrics import CONTENT_TYPE
from serving.schemas import Health, ModelResponse

router = APIRouter(tags=["operations"])


@router.get("/healthz", operation_id="health")
async def health() -> Health:
    """The process answers. Restart it when this fails."""
    return Health(status="ok")


@router.get(
    "/readyz", operation_id="ready", responses={503: {"model": Health, "description": "Not ready for all requests."}}
)
async def ready(response: Response, context: Context) -> Health:
    """Model and store are there. Send traffic only while this is 200."""
    # The service does not start with a model that cannot answer.
    checks = {"model": "ok", "store": "ok"}
    try:
        await context.on_store(context.store.ping)
    except StoreUnavailableError as error:
        checks["store"] = str(error)
        response.status_code = 503
        response.headers["Retry-After"] = str(context.settings.retry_after_s)
        return Health(status="unavailable", checks=checks)
    return Health(status="ok", checks=checks)


@router.get(
    "/metrics", operation_id="metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
)
async def metrics(context: Context) -> Response:
    """Metrics for Prometheus."""
    return Response(context.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/model", operation_id="get_model")
async def get_model(context: Context) -> ModelResponse:
    """What is being served."""
    info = context.runtime.info
    return ModelResponse(
        name=info.name,
        model_version=info.model_version,
        created_at=info.created_at,
        num_items=context.runtime.catalog.num_items,
        libraries=dict(info.libraries),
    )


@router.get("/v1/report", operation_id="get_report")
async def get_report(context: Context) -> dict[str, Any]:
    """The offline evaluation of the served model and its baselines, as in report.json."""
    return dict(context.runtime.report)
