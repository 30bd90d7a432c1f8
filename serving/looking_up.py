"""From requests for similar items, ranked items and found items to their responses. Knows no routes.

Nothing of them is logged as shown: that is known of `/v1/recommend` alone.
"""

from __future__ import annotations

import time
import uuid

from serving import presentation
from serving.answers import FallbackReason, Query
from serving.context import ServingContext
from serving.detailing import detailed
from serving.explaining import explained
from serving.models import ServedModel
from serving.problems import unknown_item
from serving.recommending import Known, milliseconds_since, read_user, response_of
from serving.requested_rules import query_rules, rule_problems
from serving.schemas.lists import RecommendResponse
from serving.schemas.requests import RankRequest, SearchRequest, SimilarRequest
from serving.schemas.rules import Rules
from serving.shown import best


async def similar(
    context: ServingContext, model: ServedModel, request: SimilarRequest, allowance_s: float | None
) -> RecommendResponse:
    """Items like one item, without it.

    Raises:
        ProblemError: the catalogue does not have it, or a rule cannot be met.
        OverloadedError: too many others wait.
    """
    if model.runtime.find(request.item_id) is None:
        raise unknown_item(request.item_id)
    with rule_problems():
        rules = query_rules(request, context.settings)
        query = Query(task="similar", history=[request.item_id], k=request.k, **rules)
        return await _respond(context, model, request, query, time.monotonic(), allowance_s)


async def search(
    context: ServingContext, model: ServedModel, request: SearchRequest, allowance_s: float | None
) -> RecommendResponse:
    """Items that words describe.

    Raises:
        ProblemError: a rule cannot be met.
        OverloadedError: too many others wait.
    """
    with rule_problems():
        rules = query_rules(request, context.settings)
        query = Query(task="search", history=[], words=request.query, k=request.k, **rules)
        return await _respond(context, model, request, query, time.monotonic(), allowance_s)


async def rank(
    context: ServingContext, model: ServedModel, request: RankRequest, allowance_s: float | None
) -> RecommendResponse:
    """Given items, best first.

    Raises:
        ProblemError: the user is unknown.
        OverloadedError: too many others wait.
    """
    started = time.monotonic()
    known = Known(history=request.history or [])
    if request.user_id is not None:
        deadline = started + (model.chain.default_deadline_s if allowance_s is None else allowance_s)
        known = await read_user(context, model, request.user_id, deadline)
    query = Query(
        task="rank",
        history=known.history,
        items=request.items,
        k=len(request.items),
        exclude_seen=False,
        session=None if known.missing else request.user_id,
    )
    return await _respond(context, model, request, query, started, allowance_s, known.missing)


async def _respond(
    context: ServingContext,
    model: ServedModel,
    request: SimilarRequest | SearchRequest | RankRequest,
    query: Query,
    started: float,
    allowance_s: float | None,
    missing: FallbackReason | None = None,
) -> RecommendResponse:
    deadline = started + (model.chain.default_deadline_s if allowance_s is None else allowance_s)
    found = await model.chain.answer(query, deadline, missing)
    answer = best(found, query.k).answer
    items = presentation.recommended(model.runtime, answer)
    items = await explained(context, model, items, query.history, request.explain, deadline)
    details = None
    if request.details:
        rules = request if isinstance(request, Rules) else None
        items, details = await detailed(context, model, query, rules, found, answer, items, deadline)
    return response_of(
        model,
        answer,
        {**answer.timings_ms, "total": milliseconds_since(started)},
        recommendation_id=uuid.uuid4().hex,
        items=items,
        details=details,
    )
