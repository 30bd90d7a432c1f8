"""`POST /v1/recommend`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import APIRouter, Header

from feature_store import StoreUnavailableError
from recsys.profile.profile import Profile
from serving import presentation
from serving.admission import DEADLINE_HEADER
from serving.answers import FallbackReason, Query
from serving.context import Context, ServingContext
from serving.models import ServedModel
from serving.problems import ProblemError, responses
from serving.profiles import UnreadableProfileError
from serving.runtime import UnknownCategoryError
from serving.schemas import MAX_DEADLINE_MS, MAX_HISTORY, RecommendRequest, RecommendResponse

DeadlineMs = Annotated[
    float | None,
    Header(
        alias=DEADLINE_HEADER,
        gt=0,
        le=MAX_DEADLINE_MS,
        description="Milliseconds from now after which an answer is of no more use; the service's own limit if absent.",
    ),
]

router = APIRouter(prefix="/v1", tags=["recommend"])
_log = structlog.get_logger(__name__)


@router.post("/recommend", operation_id="recommend", responses=responses(400, 404, 413, 422, 503))
async def recommend(request: RecommendRequest, context: Context, deadline_ms: DeadlineMs = None) -> RecommendResponse:
    """The items that the user, or somebody with this history, most likely wants next.

    Without a usable history the most popular items are the answer, and `source` says so. With mode `reason` the model
    writes its reasons first, and `chains` holds them. What fails, or would not be ready before the deadline, is
    replaced by what is; then `degraded` is true. 503 means that more requests wait than can be answered in time.
    """
    started = time.monotonic()
    with context.model.use() as model:
        if request.mode == "reason" and model.runtime.no_reasons is not None:
            raise ProblemError(422, f"{model.runtime.no_reasons}; or ask with mode direct", field="mode")
        deadline = started + _allowance_s(context, model, request, deadline_ms)
        timings: dict[str, float] = {}
        known = await _read_user(context, model, request, deadline)
        if request.user_id is not None:
            timings["history"] = _milliseconds_since(started)
        query = Query(
            history=known.history,
            k=request.k,
            exclude=request.exclude,
            categories=request.categories,
            max_per_category=request.max_per_category,
            exclude_seen=request.exclude_seen,
            session=request.user_id,
            mode=request.mode,
            profile=known.profile,
        )
        try:
            answer = await model.chain.answer(query, deadline, known.missing, context.settings.reason)
        except UnknownCategoryError as error:
            raise ProblemError(422, f"{error}; see /v1/categories", field="categories") from error
        timings |= answer.timings_ms
        items = presentation.recommended(model.runtime, answer)
        timings["total"] = _milliseconds_since(started)
        context.metrics.observe_recommendation(
            source=answer.source, fallback_reason=answer.fallback_reason, timings_ms=timings
        )
        context.models.show_to_shadow(query, answer, model.runtime.catalog.item_ids.__getitem__)
        return RecommendResponse(
            recommendation_id=uuid.uuid4().hex,
            items=items,
            source=answer.source,
            fallback_reason=answer.fallback_reason,
            degraded=answer.is_degraded,
            chains=list(answer.chains),
            unknown_items=answer.unknown_items,
            used_profile=answer.used_profile,
            model_version=model.version,
            timings_ms=timings,
        )


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of who asks."""

    history: Sequence[str]
    profile: Profile | None = None
    missing: FallbackReason | None = None


def _allowance_s(
    context: ServingContext, model: ServedModel, request: RecommendRequest, deadline_ms: float | None
) -> float:
    if deadline_ms is not None:
        return deadline_ms / 1000
    return context.settings.deadline.reason_ms / 1000 if request.mode == "reason" else model.chain.default_deadline_s


async def _read_user(context: ServingContext, model: ServedModel, request: RecommendRequest, deadline: float) -> _Known:
    if request.user_id is None:
        return _Known(history=request.history or [])
    user_id = request.user_id
    within_s = (deadline - time.monotonic()) * context.settings.deadline.store_share
    try:
        history = await stored_history(context, user_id, within_s)
        if request.mode == "direct" and model.runtime.reads_profiles:
            return _Known(history=history, profile=await edited_profile(context, model, user_id, within_s))
    except StoreUnavailableError as error:
        _log.warning("answering without the store", error=str(error))
        return _Known(history=[], missing="store_unavailable")
    return _Known(history=history)


async def stored_history(context: ServingContext, user_id: str, within_s: float | None = None) -> list[str]:
    """A user's item ids, oldest first."""
    history = await context.on_store(lambda: context.store.user_history(user_id, MAX_HISTORY), within_s=within_s)
    if not history:
        raise ProblemError(
            404,
            f"user {user_id!r} is unknown; post an event for the user first, or send a history instead of user_id",
            field="user_id",
        )
    return history


async def edited_profile(
    context: ServingContext, model: ServedModel, user_id: str, within_s: float | None = None
) -> Profile | None:
    """The profile of a user who has edited it. One that rules made of the history says nothing that the model does not
    read there; and nobody should lose a list to a profile that cannot be read."""
    try:
        return await context.on_store(lambda: model.profiles.read_edited(context.store, user_id), within_s=within_s)
    except UnreadableProfileError as error:
        _log.warning("answering without the stored profile", error=str(error))
        return None


def _milliseconds_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 3)
