"""What users did, and what became of it."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from feature_store.events import EVENT_TYPE_PATTERN
from serving.schemas.fields import Id, Moment, RequestBody, ResponseBody

MAX_EVENTS = 1000


class EventIn(RequestBody):
    """What a user did. Posting it again with the same `event_id` changes nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"event_id": "5f0c1a7e", "user_id": "196", "item_id": "50", "event_type": "view"}]
        }
    )

    event_id: Id
    """Idempotency key, unique among the user's events; make one per event and keep it when you retry."""
    user_id: Id
    """A user that the store does not know is created."""
    item_id: Id
    event_type: Annotated[str, Field(pattern=EVENT_TYPE_PATTERN)] = "view"
    timestamp: Moment | None = None
    """When it happened; the time of arrival when left out."""
    recommendation_id: Id | None = None
    """Of the list that the item was taken from, as `/v1/recommend` gave it: `/v1/experiments` counts by it which lists
    led to something. Of an event that is posted again the first one counts."""

    def seconds(self, now: float) -> float:
        """Seconds since 1970 UTC; `now` when the sender gave no time. A time without a zone is UTC."""
        if self.timestamp is None:
            return now
        moment = self.timestamp if self.timestamp.tzinfo else self.timestamp.replace(tzinfo=UTC)
        return moment.timestamp()


EventList = Annotated[list[EventIn], Field(min_length=1, max_length=MAX_EVENTS)]


def _one_or_many(value: Any) -> Literal["event", "events"]:
    return "events" if isinstance(value, list) else "event"


EventsBody = Annotated[
    Annotated[EventIn, Tag("event")] | Annotated[EventList, Tag("events")], Discriminator(_one_or_many)
]


class RejectedEvent(ResponseBody):
    """An event that was not stored."""

    event_id: str
    reason: str


class EventsResponse(ResponseBody):
    """What became of the events. An accepted event survives a crash of any process."""

    accepted: int
    duplicates: int
    """Events that were stored already."""
    rejected: list[RejectedEvent]
