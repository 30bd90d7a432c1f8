"""`/v1/admin/models`: which models are in memory, and which of them answers."""

from __future__ import annotations

from fastapi import APIRouter

from recsys.errors import ArtifactError
from serving.context import Context, ServingContext
from serving.fleet import ModelChange
from serving.models import ModelError
from serving.problems import ProblemError, responses
from serving.schemas.operations import LoadModel, ModelState, ModelStates, ModelVersion, ShadowModel
from serving.traffic import model_requests

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.get("/models", operation_id="list_models", responses=responses(503))
async def list_models(context: Context) -> ModelStates:
    """The models in memory, in the order in which they were loaded."""
    return await _states(context)


@router.post("/models:load", operation_id="load_model", responses=responses(400, 409, 413, 422))
async def load_model(body: LoadModel, context: Context) -> ModelStates:
    """Read, verify and warm up a bundle, while the active model goes on answering. It then waits for `:activate`."""
    return await _changed(context, ModelChange(action="load", bundle=body.bundle), field="bundle")


@router.post("/models:activate", operation_id="activate_model", responses=responses(400, 409, 413, 422))
async def activate_model(body: ModelVersion, context: Context) -> ModelStates:
    """Let a loaded model answer from the next request on. Requests in progress end on the one that they began with."""
    return await _changed(context, ModelChange(action="activate", model_version=body.model_version))


@router.post("/models:rollback", operation_id="roll_back_model", responses=responses(409))
async def roll_back_model(context: Context) -> ModelStates:
    """Let the model answer again that did so before the last activation."""
    return await _changed(context, ModelChange(action="rollback"))


@router.post("/models:unload", operation_id="unload_model", responses=responses(400, 409, 413, 422))
async def unload_model(body: ModelVersion, context: Context) -> ModelStates:
    """Forget a model that does not answer, and free its memory."""
    return await _changed(context, ModelChange(action="unload", model_version=body.model_version))


@router.post("/models:shadow", operation_id="shadow_model", responses=responses(400, 409, 413, 422))
async def shadow_model(body: ShadowModel, context: Context) -> ModelStates:
    """Show a share of the requests to a loaded model too. Its lists are compared with those that are given
    (`recsys_shadow_agreement` in /metrics), and given to nobody."""
    return await _changed(context, ModelChange(action="shadow", model_version=body.model_version, share=body.share))


async def _changed(context: ServingContext, change: ModelChange, field: str | None = None) -> ModelStates:
    try:
        await context.fleet.change(change)
        return await _states(context)
    except ModelError as error:
        raise ProblemError(409, str(error), field=field) from error
    except ArtifactError as error:
        raise ProblemError(422, f"{error}; model {context.model.version} goes on", field=field) from error


async def _states(context: ServingContext) -> ModelStates:
    in_flight = model_requests(await context.fleet.collect_metrics())
    return ModelStates(
        models=[
            ModelState(
                model_version=model.version,
                name=model.runtime.info.name,
                created_at=model.runtime.info.created_at,
                num_items=model.runtime.num_listed,
                state=state,
                in_flight=in_flight.get(model.version, 0),
            )
            for model, state in context.models.states()
        ]
    )
