"""`POST /v1/recommend`, for one request, for many at once, and for the next page of a list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request
from pydantic import ValidationError

from recsys.errors import ConfigError
from serving.admission import DEADLINE_HEADER, Ticket, ticket_of
from serving.batching import OverloadedError
from serving.context import Context, ServingContext
from serving.experiments import OVERRIDE_HEADER, parse_override
from serving.guard.middleware import client_of
from serving.models import ServedModel
from serving.problems import Problem, ProblemError, invalid_fields, problem, responses
from serving.recommending import next_page
from serving.recommending import recommend as respond
from serving.schemas.lists import BatchEntry, BatchResponse, RecommendResponse
from serving.schemas.requests import MAX_BATCH_CONDITIONS, MAX_DEADLINE_MS, BatchRequest, NextRequest, RecommendRequest

router = APIRouter(prefix="/v1", tags=["recommend"])

DeadlineMs = Annotated[
    float | None,
    Header(
        alias=DEADLINE_HEADER,
        gt=0,
        le=MAX_DEADLINE_MS,
        description="Milliseconds from now after which an answer is of no more use; the service's own limit if absent.",
    ),
]

_BEGUN_AT_ONCE = 4
"""Entries of a batch that begin in one turn of the event loop: one that no model answers is done within it, and the
other clients wait meanwhile."""

AnyT = TypeVar("AnyT")

Admitted = Annotated[Ticket, Depends(ticket_of)]


async def _forced(request: Request) -> dict[str, str]:
    """The variants that the header asks for: an administrator's, or anybody's where only this machine is answered.

    Raises:
        ProblemError: somebody else sends it, or it is malformed.
    """
    header = request.headers.get(OVERRIDE_HEADER)
    if header is None:
        return {}
    client = client_of(request.scope)
    if not (request.app.state.has_one_user if client is None else client.role == "admin"):
        request.app.state.context.metrics.count_refused("role")
        raise ProblemError(403, f"{OVERRIDE_HEADER} needs a key of role admin; leave it out", field=OVERRIDE_HEADER)
    try:
        return parse_override(header)
    except ConfigError as error:
        raise ProblemError(422, str(error), field=OVERRIDE_HEADER) from error


Forced = Annotated[dict[str, str], Depends(_forced)]


@router.post("/recommend", operation_id="recommend", responses=responses(400, 404, 413, 422, 503))
async def recommend(
    request: RecommendRequest,
    context: Context,
    forced: Forced,
    ticket: Admitted,
    deadline_ms: DeadlineMs = None,
) -> RecommendResponse:
    """The items that the user, or somebody with this history, most likely wants next.

    Without a usable history the most popular items are the answer, and `source` says so. With mode `reason` the model
    writes its reasons first, and `chains` holds them. What fails, or would not be ready before the deadline, is
    replaced by what is; then `degraded` is true. 503 means that more requests wait than can be answered in time.
    """
    if request.mode == "reason":
        # Its seconds are spent in a line of its own: they say nothing about the others' lateness.
        context.admission.step_aside(ticket)
    with context.model.use() as model:
        allowance_s = None if deadline_ms is None else deadline_ms / 1000
        return await respond(context, model, request, allowance_s=allowance_s, forced=forced)


@router.post("/recommend:next", operation_id="recommend_next", responses=responses(400, 410, 413, 422, 503))
async def recommend_next(request: NextRequest, context: Context) -> RecommendResponse:
    """The next items of a list that `depth` froze, in its order: pages never repeat an item, and together they are the
    list, whatever happens between them; only items that were removed meanwhile are missing."""
    return await next_page(context, request)


@router.post("/recommend:batch", operation_id="recommend_batch", responses=responses(400, 413, 422, 503))
async def recommend_batch(
    body: BatchRequest,
    context: Context,
    forced: Forced,
    ticket: Admitted,
    deadline_ms: DeadlineMs = None,
) -> BatchResponse:
    """Many requests at once, all answered by one model, except for users whose experiment has another. Each has its own
    status: one that cannot be met does not fail the others; only filters that have too many conditions together fail
    them all. The deadline is that of the whole batch; without one, it grows with the batch."""
    with context.model.use() as model:
        # As if so many came one after the other in full batches.
        turns = 1 + len(body.requests) / context.settings.batching.max_batch
        allowance_s = turns * model.chain.default_deadline_s if deadline_ms is None else deadline_ms / 1000
        ticket.deadline_s = allowance_s
        until = time.monotonic() + allowance_s
        requests = [_read(each) async for each in _in_turns(body.requests)]
        _check_conditions(requests)
        entries: list[asyncio.Task[BatchEntry]] = []
        async with asyncio.TaskGroup() as group:
            async for request in _in_turns(requests):
                entries.append(group.create_task(_entry(context, model, request, until, forced)))
        return BatchResponse(results=[entry.result() for entry in entries])


async def _in_turns(each: Sequence[AnyT]) -> AsyncIterator[AnyT]:
    for place, one in enumerate(each):
        if place and place % _BEGUN_AT_ONCE == 0:
            await asyncio.sleep(0)
        yield one


def _read(body: Mapping[str, Any]) -> RecommendRequest | Problem:
    try:
        return RecommendRequest.model_validate(body)
    except ValidationError as error:
        fields = invalid_fields(error.errors())
        return problem(422, f"{fields[0].field}: {fields[0].message}", fields)


def _check_conditions(requests: Sequence[RecommendRequest | Problem]) -> None:
    """Refuse a batch whose filters would take longer than a batch may.

    Raises:
        ProblemError: they have too many conditions together.
    """
    count = sum(each.num_conditions for each in requests if isinstance(each, RecommendRequest))
    if count > MAX_BATCH_CONDITIONS:
        raise ProblemError(
            422,
            f"requests: their filters and boosts may have {MAX_BATCH_CONDITIONS} conditions together, got {count}; "
            "send smaller batches, or use in for many values",
            field="requests",
        )


async def _entry(
    context: ServingContext,
    model: ServedModel,
    request: RecommendRequest | Problem,
    until: float,
    forced: Mapping[str, str],
) -> BatchEntry:
    if isinstance(request, Problem):
        return _failed(request)
    try:
        answer = await respond(context, model, request, allowance_s=until - time.monotonic(), forced=forced)
    except ProblemError as error:
        return _failed(problem(error.status, error.detail, error.fields))
    except OverloadedError as error:
        return _failed(problem(503, str(error)))
    return BatchEntry(status=200, answer=answer, problem=None)


def _failed(found: Problem) -> BatchEntry:
    return BatchEntry(status=found.status, answer=None, problem=found)
