"""`POST /v1/events`."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Body

from feature_store import Event, InvalidEventError
from serving.context import Context
from serving.problems import ProblemError, responses
from serving.schemas.events import EventIn, EventsBody, EventsResponse, RejectedEvent

router = APIRouter(prefix="/v1", tags=["events"])


@router.post("/events", operation_id="append_events", responses=responses(400, 413, 422, 503))
async def append_events(body: Annotated[EventsBody, Body()], context: Context) -> EventsResponse:
    """Tell what users did: one event or a list. The next recommendation for the user takes it into account.

    An event counts once, however often it is posted: after a 503 or a lost connection simply post it again.
    Events of a list are judged one by one; the answer is 422 only when all of them are rejected.
    """
    posted = body if isinstance(body, list) else [body]
    now = time.time()
    ids = [event.item_id for event in posted]
    unknown = context.runtime.catalog.index_of(ids) < 0
    if unknown.any():
        await context.catalogue.look()  # another process may have added them this moment
        unknown = context.runtime.catalog.index_of(ids) < 0
    events: list[Event] = []
    rejected: list[RejectedEvent] = []
    for event, is_unknown in zip(posted, unknown, strict=True):
        checked = _check(event, bool(is_unknown), now, context.settings.max_clock_skew_s)
        if isinstance(checked, Event):
            events.append(checked)
        else:
            rejected.append(RejectedEvent(event_id=event.event_id, reason=checked))
    outcomes = await context.on_store(lambda: context.store.append_events(events))
    rejected += [
        RejectedEvent(
            event_id=event.event_id,
            reason=f"event_id: user {event.user_id!r} has a different event under this id; use a new id",
        )
        for event, outcome in zip(events, outcomes, strict=True)
        if outcome == "conflict"
    ]
    answer = EventsResponse(
        accepted=outcomes.count("accepted"), duplicates=outcomes.count("duplicate"), rejected=rejected
    )
    context.metrics.count_events("accepted", answer.accepted)
    context.metrics.count_events("duplicate", answer.duplicates)
    context.metrics.count_events("rejected", len(rejected))
    if len(rejected) == len(posted):
        raise ProblemError(
            422,
            f"none of {len(posted)} events was accepted; the first: {rejected[0].reason}",
            extra=answer.model_dump(),
        )
    return answer


def _check(event: EventIn, is_unknown: bool, now: float, max_clock_skew_s: float) -> Event | str:
    """The event for the store, or why it is rejected."""
    if is_unknown:
        return f"item_id: the catalogue has no item {event.item_id!r}"
    seconds = event.seconds(now)
    if seconds > now + max_clock_skew_s:
        return f"timestamp: {event.timestamp} lies in the future; check the sender's clock, the unit is seconds UTC"
    try:
        return Event(
            event_id=event.event_id,
            user_id=event.user_id,
            item_id=event.item_id,
            event_type=event.event_type,
            timestamp=seconds,
            recommendation_id=event.recommendation_id,
        )
    except InvalidEventError as error:
        return str(error)
