"""`POST /v1/recommend`."""

from __future__ import annotations

import time
import uuid

import structlog
from fastapi import APIRouter

from recsys.profile.profile import Profile
from serving import presentation
from serving.context import Context, ServingContext
from serving.problems import ProblemError, responses
from serving.profiles import UnreadableProfileError
from serving.runtime import UnknownCategoryError
from serving.schemas import MAX_HISTORY, RecommendRequest, RecommendResponse

router = APIRouter(prefix="/v1", tags=["recommend"])
_log = structlog.get_logger(__name__)


@router.post("/recommend", operation_id="recommend", responses=responses(400, 404, 413, 422, 503))
async def recommend(request: RecommendRequest, context: Context) -> RecommendResponse:
    """The items that the user, or somebody with this history, most likely wants next.

    Without a usable history the most popular items are the answer, and `source` says so. With mode `reason` the model
    writes its reasons first, and `chains` holds them.
    """
    started = time.perf_counter()
    timings: dict[str, float] = {}
    if request.mode == "reason" and context.runtime.no_reasons is not None:
        raise ProblemError(422, f"{context.runtime.no_reasons}; or ask with mode direct", field="mode")
    profile: Profile | None = None
    if request.user_id is None:
        history = request.history or []
    else:
        history = await stored_history(context, request.user_id)
        if request.mode == "direct" and context.runtime.reads_profiles:
            profile = await edited_profile(context, request.user_id)
        timings["history"] = _milliseconds_since(started)
    try:
        on_model = context.on_reasoning if request.mode == "reason" else context.on_model
        answer = await on_model(
            lambda: context.runtime.recommend(
                history,
                k=request.k,
                exclude=request.exclude,
                categories=request.categories,
                max_per_category=request.max_per_category,
                exclude_seen=request.exclude_seen,
                session=request.user_id,
                mode=request.mode,
                reason=context.settings.reason,
                profile=profile,
            )
        )
    except UnknownCategoryError as error:
        raise ProblemError(422, f"{error}; see /v1/categories", field="categories") from error
    timings |= answer.timings_ms
    items = presentation.recommended(context.runtime, answer)
    timings["total"] = _milliseconds_since(started)
    context.metrics.observe_recommendation(
        source=answer.source,
        fallback_reason=answer.fallback_reason,
        timings_ms=timings,
        items=[pick.item for pick in answer.picks],
    )
    return RecommendResponse(
        recommendation_id=uuid.uuid4().hex,
        items=items,
        source=answer.source,
        fallback_reason=answer.fallback_reason,
        chains=list(answer.chains),
        unknown_items=answer.unknown_items,
        used_profile=answer.used_profile,
        model_version=context.runtime.info.model_version,
        timings_ms=timings,
    )


async def stored_history(context: ServingContext, user_id: str) -> list[str]:
    """A user's item ids, oldest first."""
    history = await context.on_store(lambda: context.store.user_history(user_id, MAX_HISTORY))
    if not history:
        raise ProblemError(
            404,
            f"user {user_id!r} is unknown; post an event for the user first, or send a history instead of user_id",
            field="user_id",
        )
    return history


async def edited_profile(context: ServingContext, user_id: str) -> Profile | None:
    """The profile of a user who has edited it. One that rules made of the history says nothing that the model does not
    read there; and nobody should lose a list to a profile that cannot be read."""
    try:
        return await context.on_store(lambda: context.profiles.read_edited(context.store, user_id))
    except UnreadableProfileError as error:
        _log.warning("answering without the stored profile", error=str(error))
        return None


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
