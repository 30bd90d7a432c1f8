"""From a request of the API to its response: who asks, the answer in time, the page. Knows no routes."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import anyio.to_thread
import numpy as np
import structlog

from feature_store import InvalidEventError, StoreUnavailableError, UserState
from feature_store.slates import ServedSlate, history_hash
from recsys.errors import ConfigError
from recsys.profile.profile import Profile
from serving import presentation
from serving.answers import Answer, FallbackReason, Query
from serving.arms import Arm
from serving.clock import Clock
from serving.context import ServingContext
from serving.cursors import CursorError, Frozen
from serving.detailing import detailed
from serving.experiments import OVERRIDE_HEADER
from serving.explaining import explained
from serving.models import ServedModel
from serving.problems import ProblemError
from serving.profiles import UnreadableProfileError
from serving.requested_rules import query_rules, rule_problems
from serving.schemas.lists import ListDetails, RecommendedItem, RecommendResponse
from serving.schemas.requests import MAX_HISTORY, NextRequest, RecommendRequest
from serving.shown import Shown, best, draw, pinned_pick
from serving.stages import Asked, Listed

_FROZEN_HISTORY = 50

_log = structlog.get_logger(__name__)


async def recommend(
    context: ServingContext,
    model: ServedModel,
    request: RecommendRequest,
    *,
    allowance_s: float | None,
    forced: Mapping[str, str] | None = None,
) -> RecommendResponse:
    """The response to one request.

    Args:
        context: what the routes share.
        model: answers, unless the request names another one or the user is in an experiment with one; the caller
            keeps it in use.
        request: what is asked.
        allowance_s: how long it may take; the service's own limit when None.
        forced: experiments and the variants that a tester wants to see of them.

    Raises:
        ProblemError: the request cannot be met.
        OverloadedError: too many others wait.
    """
    try:
        arm = context.arms.of(request.user_id if request.model_version is None else None, forced or {})
    except ConfigError as error:
        raise ProblemError(422, str(error), field=OVERRIDE_HEADER) from error
    if request.model_version is None:
        model = context.models.chosen(arm.settings.model_version, model)
    else:
        model = _named(context, request.model_version)
    with model.use() as chosen:
        runtime = chosen.runtime
        request = arm.applied_to(request, can_reason=runtime.no_reasons is None, columns=runtime.catalog.frame.columns)
        return await _respond(context, chosen, request, arm, allowance_s)


def _named(context: ServingContext, version: str) -> ServedModel:
    model = context.models.find(version)
    if model is None:
        loaded = ", ".join(each.version for each, _ in context.models.states())
        raise ProblemError(422, f"no model {version!r} is in memory; there are: {loaded}", field="model_version")
    return model


async def _respond(
    context: ServingContext, model: ServedModel, request: RecommendRequest, arm: Arm, allowance_s: float | None
) -> RecommendResponse:
    started = time.monotonic()
    if request.mode == "reason" and model.runtime.no_reasons is not None:
        raise ProblemError(422, f"{model.runtime.no_reasons}; or ask with mode direct", field="mode")
    deadline = started + (_own_limit_s(context, model, request) if allowance_s is None else allowance_s)
    timings: dict[str, float] = {}
    known = await _read_user(context, model, request, deadline)
    if request.user_id is not None:
        timings["history"] = milliseconds_since(started)
    length = request.depth or request.k
    exploration = context.settings.exploration
    epsilon = exploration.epsilon if arm.settings.epsilon is None else arm.settings.epsilon
    with rule_problems():
        query = Query(
            history=known.history,
            k=length,
            drawn_from=0 if epsilon == 0 else exploration.candidates,
            exclude_seen=request.exclude_seen not in (False, "none"),
            seen_window=request.seen_window,
            session=request.user_id,
            mode=request.mode,
            objectives=request.objectives,
            profile=known.profile,
            **query_rules(request, context.settings),
        )
        found = await model.chain.answer(query, deadline, known.missing, context.settings.reason)
    # A shadow must not be compared with itself, and need not have the model's objectives.
    if request.model_version is None and not request.objectives:
        context.models.show_to_shadow(query, found, model.runtime.catalog.item_ids.__getitem__)
    if epsilon == 0:
        shown = best(found, length)
    else:
        shown = await anyio.to_thread.run_sync(draw, found, length, epsilon)
    answer, page = shown.answer, shown.answer.picks[: request.k]
    recommendation_id, cursor = uuid.uuid4().hex, None
    if len(answer.picks) > request.k:
        cursor = _freeze(context, model, query, answer, recommendation_id, request.k)
    items = presentation.recommended(model.runtime, replace(answer, picks=page))
    items = await explained(context, model, items, known.history, request.explain, deadline)
    details = None
    if request.details:
        items, details = await detailed(context, model, query, request, found, answer, items, deadline)
    if request.user_id is not None and known.missing is None:
        ids = [item.item_id for item in items]
        _log_shown(context, model, request.user_id, known, arm, shown, recommendation_id, ids)
    timings |= answer.timings_ms
    timings["total"] = milliseconds_since(started)
    context.metrics.observe_recommendation(
        source=answer.source,
        fallback_reason=answer.fallback_reason,
        timings_ms=timings,
        certified=answer.certified,
        # Deciles and drift are over the items of the active model, which may have changed meanwhile.
        items=[pick.item for pick in page] if model.version == context.model.version else (),
    )
    return response_of(
        model,
        answer,
        timings,
        recommendation_id=recommendation_id,
        items=items,
        next_cursor=cursor,
        variants=arm.variants,
        details=details,
    )


def response_of(
    model: ServedModel,
    answer: Answer,
    timings_ms: Mapping[str, float],
    *,
    recommendation_id: str,
    items: list[RecommendedItem],
    next_cursor: str | None = None,
    variants: Mapping[str, str] | None = None,
    details: ListDetails | None = None,
) -> RecommendResponse:
    """The envelope of every list."""
    return RecommendResponse(
        recommendation_id=recommendation_id,
        items=items,
        next_cursor=next_cursor,
        source=answer.source,
        fallback_reason=answer.fallback_reason,
        degraded=answer.is_degraded,
        chains=list(answer.chains),
        unknown_items=answer.unknown_items,
        details=details,
        dropped_pins=list(answer.dropped_pins),
        used_profile=answer.used_profile,
        variants=dict(variants or {}),
        model_version=model.version,
        catalog_version=model.runtime.catalog_version,
        timings_ms=dict(timings_ms),
    )


async def next_page(context: ServingContext, request: NextRequest) -> RecommendResponse:
    """The next items of a frozen list, without those that were removed meanwhile.

    Raises:
        ProblemError: the cursor is none, or its list or model is gone.
    """
    clock, started = Clock(), time.monotonic()
    try:
        frozen = Frozen.of(request.cursor, time.time())
    except CursorError as error:
        raise ProblemError(422, str(error), field="cursor") from error
    model = context.models.find(frozen.model_version)
    if model is not None and frozen.catalog_version > model.runtime.catalog_version:
        # Another process has made the list, of changes that this one has not read yet.
        await context.catalogue.refresh()
        model = context.models.find(frozen.model_version)
    if model is None:
        raise ProblemError(410, "the model that made this list is gone; ask for a new one", field="cursor")
    largest = model.runtime.catalog.num_items
    if not all(0 <= int(item) < largest for item in (*frozen.listed.items, *frozen.history)):
        raise ProblemError(422, "no cursor of this service; give back `next_cursor` as it was", field="cursor")
    listed, rest = frozen.without_removed(model.runtime.listed).split(request.k)
    asked = Asked(k=request.k, history=frozen.history, denied=np.zeros(0, dtype=np.int64))
    answer = model.runtime.answer(asked, listed, frozen.source, frozen.fallback_reason, [], clock)
    picks = [pinned_pick(pick.item) if math.isnan(pick.score) else pick for pick in answer.picks]
    items = presentation.recommended(model.runtime, replace(answer, picks=picks))
    history = [model.runtime.catalog.item_ids[item] for item in frozen.history.tolist()]
    deadline = started + model.chain.default_deadline_s
    items = await explained(context, model, items, history, request.explain, deadline)
    return response_of(
        model,
        answer,
        {**clock.timings_ms, "total": milliseconds_since(started)},
        recommendation_id=frozen.recommendation_id,
        items=items,
        next_cursor=None if rest is None else rest.text(),
    )


def _freeze(
    context: ServingContext, model: ServedModel, query: Query, answer: Answer, recommendation_id: str, k: int
) -> str:
    """The cursor to what is behind the first `k` items of an answer."""
    history = model.runtime.catalog.index_of(query.history)
    whole = Frozen(
        model_version=model.version,
        catalog_version=model.runtime.catalog_version,
        recommendation_id=recommendation_id,
        source=answer.source,
        fallback_reason=answer.fallback_reason,
        expires=time.time() + context.settings.cursor_s,
        history=history[history >= 0][-_FROZEN_HISTORY:],
        listed=Listed(
            items=np.array(answer.items, dtype=np.int64),
            scores=np.array([pick.score for pick in answer.picks], dtype=np.float32),
        ),
    )
    _, rest = whole.split(k)
    assert rest is not None
    return rest.text()


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of who asks."""

    history: Sequence[str]
    profile: Profile | None = None
    missing: FallbackReason | None = None


def _log_shown(
    context: ServingContext,
    model: ServedModel,
    user_id: str,
    known: Known,
    arm: Arm,
    shown: Shown,
    recommendation_id: str,
    item_ids: Sequence[str],
) -> None:
    """Have the first page of a list logged, with its probabilities; whatever goes wrong, the user gets it."""
    if context.slates is None:
        return
    profile = known.profile if shown.answer.used_profile else None
    try:
        slots = shown.slots(item_ids)
        slate = ServedSlate(
            request_id=recommendation_id,
            user_id=user_id,
            timestamp=time.time(),
            history_hash=history_hash(known.history),
            profile_version=None if profile is None else profile.version,
            policy=shown.answer.source,
            model_version=model.version,
            candidates_version=model.runtime.candidates_version,
            slots=slots,
            joint_log_propensity=sum(math.log(slot.conditional) for slot in slots),
            epsilon=shown.epsilon,
            seed=shown.seed,
            exposures=arm.exposures,
        )
    except InvalidEventError as error:  # ids of items may be longer than the log allows
        _log.warning("a list that was shown cannot be logged", error=str(error))
        context.metrics.count_slates("failed", 1)
        return
    context.slates.put(slate, context.metrics)


def _own_limit_s(context: ServingContext, model: ServedModel, request: RecommendRequest) -> float:
    return context.settings.deadline.reason_ms / 1000 if request.mode == "reason" else model.chain.default_deadline_s


async def _read_user(context: ServingContext, model: ServedModel, request: RecommendRequest, deadline: float) -> Known:
    if request.user_id is None:
        return Known(history=request.history or [])
    return await read_user(
        context,
        model,
        request.user_id,
        deadline,
        with_profile=request.mode == "direct" and model.runtime.reads_profiles,
    )


async def read_user(
    context: ServingContext, model: ServedModel, user_id: str, deadline: float, *, with_profile: bool = False
) -> Known:
    """What the store knows of a user, in the store's share of the time.

    Raises:
        ProblemError: it does not know the user.
    """
    within_s = (deadline - time.monotonic()) * context.settings.deadline.store_share
    try:
        state = await context.read_user(user_id, within_s=within_s)
    except StoreUnavailableError as error:
        context.metrics.count_store_error()
        _log.warning("answering without the store", error=str(error))
        return Known(history=[], missing="store_unavailable")
    if not state.history:
        raise ProblemError(
            404,
            f"user {user_id!r} is unknown; post an event for the user first, or send a history instead of user_id",
            field="user_id",
        )
    history = [entry.item_id for entry in state.history[-MAX_HISTORY:]]
    if with_profile and state.profile is not None:
        return Known(history=history, profile=await _edited_profile(model, state))
    return Known(history=history)


async def _edited_profile(model: ServedModel, state: UserState) -> Profile | None:
    """The profile of a user who has edited it. One that rules made of the history says nothing that the model does not
    read there; and nobody should lose a list to a profile that cannot be read."""
    try:
        return await anyio.to_thread.run_sync(model.profiles.edited, state)
    except UnreadableProfileError as error:
        _log.warning("answering without the stored profile", error=str(error))
        return None


def milliseconds_since(started: float) -> float:
    """Since a moment of the monotonic clock."""
    return round((time.monotonic() - started) * 1000, 3)
