"""Requests and responses of the API, with their limits and examples. Behaviour is the routes' business."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator

from feature_store.events import EVENT_TYPE_PATTERN, MAX_ID_LENGTH
from recsys.generator.filters import Filter
from recsys.profile.profile import MAX_STATEMENT_LENGTH, MAX_STATEMENTS
from recsys.profile.profile import Source as StatementSource
from serving.answers import Explain, FallbackReason, ItemStatus, Mode, Source
from serving.problems import Problem

MAX_K = 100
MAX_HISTORY = 500
MAX_EXCLUDE = 1000
MAX_CATEGORIES = 100
MAX_EVENTS = 1000
MAX_PAGE = 100
MAX_DEADLINE_MS = 600_000
MAX_BATCH = 100
MAX_CURSOR = 8000
MAX_TEXT = 10_000
MAX_ATTRIBUTES = 100
MAX_LINES = 5000
MAX_QUERY = 200
MAX_RANKED = 500
MAX_CAPS = 5
MAX_PINS = 20
MAX_BOOSTS = 20
MAX_OBJECTIVES = 20
MAX_BOOST = 100
MAX_SECONDS = 20_000_000_000
"""The year 2603; larger numbers are milliseconds."""

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE, description="Length of the page.")]
Offset = Annotated[int, Field(ge=0, le=10_000_000, description="Entries to skip.")]
Query = Annotated[str, Field(max_length=MAX_QUERY)]
_Text = Annotated[str, Field(max_length=MAX_TEXT)]
AttributeValue = _Text | Annotated[list[_Text], Field(max_length=MAX_CATEGORIES)] | None


def _in_seconds(value: Any) -> Any:
    """Refuse numbers that pydantic would take for milliseconds.

    Raises:
        ValueError: the number, or the text of one, is above `MAX_SECONDS`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value  # a date, or nothing that this has to judge
    if number > MAX_SECONDS:
        raise ValueError(f"must be seconds since 1970 UTC, got {value!r:.40}: divide milliseconds by 1000")
    return value


Moment = Annotated[
    datetime,
    BeforeValidator(_in_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": 0, "maximum": MAX_SECONDS},
            ],
            "description": "ISO 8601, or seconds since 1970 UTC.",
        }
    ),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Response(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class PinIn(_Request):
    """An item with a fixed place."""

    item_id: Id
    position: Annotated[int, Field(ge=1, le=MAX_K)]
    """1 is the top."""


class BoostIn(_Request):
    """What is added to the scores of some items. Give `filter` or `item_ids`."""

    weight: Annotated[float, Field(ge=-MAX_BOOST, le=MAX_BOOST)]
    """Scores are log-probabilities: 0.7 doubles an item's odds, -0.7 halves them."""
    filter: Filter | None = None
    """Which items."""
    item_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_EXCLUDE)] | None = None
    """Which items."""

    @model_validator(mode="after")
    def _one_of_filter_and_items(self) -> BoostIn:
        if (self.filter is None) == (self.item_ids is None):
            raise ValueError("give either filter or item_ids")
        return self


MaxPer = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)], Annotated[int, Field(ge=1, le=MAX_K)]],
    Field(max_length=MAX_CAPS),
]
Diversity = Annotated[float, Field(ge=0, le=1)]


class Rules(_Request):
    """What may stand in a list, and where. Filters, exclusions and caps hold inside the search for the best items, so
    that a list is shorter only when nothing else is permitted; boosts and diversity choose from a longer list of the
    best, `rerank_candidates` of the service's settings."""

    exclude: Annotated[list[Id], Field(max_length=MAX_EXCLUDE)] = []
    """Item ids that must not appear."""
    categories: Annotated[list[Id], Field(max_length=MAX_CATEGORIES)] = []
    """Only items with at least one of these."""
    filter: Filter | None = None
    """Only items for which this holds; see `And`, `Or`, `Not`, `Eq`, `In`, `InRange`, `Exists`, `Contains`, `Named`."""
    max_per_category: Annotated[int, Field(ge=1, le=MAX_K)] | None = None
    """At most so many items of any one category; an item counts in all of its own. The list is shorter than `k` only
    when no further item may stand in it."""
    max_per: MaxPer = {}
    """By column of the catalogue: at most so many items of any one of its values."""
    pins: Annotated[list[PinIn], Field(max_length=MAX_PINS)] = []
    """Items with fixed places, even if they were seen. One that the catalogue does not have, or that a filter forbids,
    is left out, and `dropped_pins` names it."""
    boosts: Annotated[list[BoostIn], Field(max_length=MAX_BOOSTS)] = []
    """Added to scores, all that apply to an item together."""
    diversity: Diversity = 0.0
    """Above 0 items that are like those before them move down; at 1 only the first item is there for its score."""

    @model_validator(mode="after")
    def _pins_can_stand(self) -> Self:
        ids, places = [pin.item_id for pin in self.pins], [pin.position for pin in self.pins]
        if len(set(ids)) < len(ids) or len(set(places)) < len(places):
            raise ValueError("pins must be different items at different positions")
        if both := sorted(set(ids) & set(self.exclude)):
            raise ValueError(f"{both[0]!r} is in pins and in exclude; take it out of one of them")
        return self


class RecommendRequest(Rules):
    """Who gets the list: a user of the store, or an ad-hoc history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "196", "k": 10},
                {"history": ["50", "181", "172"], "k": 5, "categories": ["Sci-Fi"], "exclude": ["174"]},
                {
                    "user_id": "196",
                    "k": 10,
                    "filter": {"not": {"contains": {"column": "categories", "value": "Horror"}}},
                    "exclude_seen": "window",
                    "seen_window": 20,
                    "max_per": {"categories": 3},
                    "pins": [{"item_id": "50", "position": 1}],
                    "diversity": 0.3,
                },
            ]
        }
    )

    user_id: Id | None = None
    """A user of the store. Give this or `history`."""
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] | None = None
    """Item ids, oldest first; may be empty, which asks for the most popular items. Give this or `user_id`."""
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the list, or of its first page."""
    depth: Annotated[int, Field(ge=1, le=MAX_K)] | None = None
    """Freeze a list of this length, at least `k`, and give its first `k` items; `next_cursor` leads on."""
    exclude_seen: bool | Literal["none", "window", "all"] = True
    """Leave out the items of the history: `all` (or true) of them, those of its last `seen_window` entries, or `none`
    (or false)."""
    seen_window: Annotated[int, Field(ge=1, le=MAX_HISTORY)] | None = None
    """Entries of the history; with `exclude_seen` `window`."""
    mode: Mode = "direct"
    """`reason`: the model first writes reasons, seconds of work, and the list is what follows from them. Refused where
    the model knows no words or was not taught to reason."""
    objectives: Annotated[dict[Id, Annotated[float, Field(ge=0, le=1000)]], Field(max_length=MAX_OBJECTIVES)] = {}
    """How much each objective counts in this list, by the names that `objectives` of `/v1/model` gives; of any sum, and
    what is left out does not count. For models whose generator was aligned with a head an objective, in mode
    `direct`."""
    model_version: Id | None = None
    """A model in memory (`loaded` of `/v1/model`) that shall answer instead of the active one. The request is then in
    no experiment, so that what is tried out does not count there."""

    explain: Explain = "evidence"
    """Reasons: `none` at all; by `evidence`, the items of the history that each item is most like; by `intent`, the tag
    of the user's interests that it fits, with a text from the model's table, else written while time is left. What fits
    no tag, or has no text that may be shown, gets evidence, and so does all that a model without such a table lists."""

    @model_validator(mode="after")
    def _one_of_user_and_history(self) -> RecommendRequest:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        return self

    @model_validator(mode="after")
    def _no_page_is_longer_than_the_list(self) -> RecommendRequest:
        if self.depth is not None and self.depth < self.k:
            raise ValueError(f"depth must be at least k, got depth {self.depth} and k {self.k}")
        _check_places(self.pins, self.depth or self.k)
        return self

    @model_validator(mode="after")
    def _objectives_are_of_direct_lists(self) -> RecommendRequest:
        if self.objectives and self.mode != "direct":
            raise ValueError("objectives are weighed in mode direct only; leave them or the mode out")
        return self

    @model_validator(mode="after")
    def _a_window_has_a_length(self) -> RecommendRequest:
        if (self.exclude_seen == "window") != (self.seen_window is not None):
            raise ValueError("seen_window belongs to exclude_seen window: give both or neither")
        return self


class SimilarRequest(Rules):
    """An item, and what may stand in the list of those that are like it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"item_id": "50", "k": 5, "max_per": {"categories": 2}}]},
    )

    item_id: Id
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the list."""

    @model_validator(mode="after")
    def _pins_are_in_the_list(self) -> SimilarRequest:
        _check_places(self.pins, self.k)
        return self


class SearchRequest(Rules):
    """Words, and what may stand in the list of the items that they describe."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "star wars", "k": 5}]})

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY, pattern=r"\S")]
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the list."""

    @model_validator(mode="after")
    def _pins_are_in_the_list(self) -> SearchRequest:
        _check_places(self.pins, self.k)
        return self


class RankRequest(_Request):
    """Items to be ranked for a user of the store, or for an ad-hoc history."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "196", "items": ["50", "181", "172"]}]})

    user_id: Id | None = None
    """A user of the store. Give this or `history`."""
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] | None = None
    """Item ids, oldest first; may be empty. Give this or `user_id`."""
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_RANKED)]
    """Item ids in any order; one that repeats counts once."""

    @model_validator(mode="after")
    def _one_of_user_and_history(self) -> RankRequest:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        return self


def _check_places(pins: Sequence[PinIn], length: int) -> None:
    for pin in pins:
        if pin.position > length:
            raise ValueError(f"a pin's position must be in the list, 1 to {length}, got {pin.position}")


class ItemSummary(_Response):
    """An item as lists show it."""

    item_id: str
    title: str | None
    categories: list[str]
    sid: list[int]
    """The semantic ID: one code a level, coarse to fine; empty while it has none of its own."""


class Because(_Response):
    """An item of the history."""

    item_id: str
    title: str | None


class ReasonOut(_Response):
    """Why an item is in the list."""

    text: str
    because: Because | None
    """The item of the history that is most like it."""
    similarity: float | None
    """Cosine of the two items' embeddings."""
    tags: list[str] = []
    """By `intent`: the kind of items that the user is into and that this is one of."""
    evidence: list[Because] = []
    """Items of the history that bear it out, best first."""


class RecommendedItem(ItemSummary):
    """An item of a recommendation."""

    score: float | None
    """Log-probability with the item's boosts; comparable within a list. Null for an item that was pinned."""
    source: Source | Literal["pin"]
    reason: ReasonOut | None
    """Null where the request wants none."""


class RecommendResponse(_Response):
    """A ranked list, best first."""

    recommendation_id: str
    items: list[RecommendedItem]
    next_cursor: str | None
    """For `/v1/recommend:next`: what is left of a list that `depth` froze; null for nothing. It expires."""
    source: Source
    fallback_reason: FallbackReason | None
    """Why the list is not of the best source that the bundle has, or of the mode; null when it is."""
    degraded: bool
    """Whether the service in good health would have given a better list: a source or the store failed, or the deadline
    was too near."""
    chains: list[str]
    """The reasons that the list follows from, in the model's own words; empty unless its source is `reasoning`."""
    unknown_items: list[str]
    """Item ids of the request or the history that the catalogue does not have; they were ignored."""
    dropped_pins: list[str]
    """Items that were to be pinned and are in no list: the catalogue does not have them, or a filter forbids them."""
    used_profile: bool
    """Whether the model read any of the user's profile before the history; never in mode `reason`."""
    variants: dict[str, str]
    """The variant of each experiment that the user is in; further pages of a list do not repeat it."""
    model_version: str
    catalog_version: int
    """Of the model's catalogue: 0 is that of its bundle, and each change of items counts one."""
    timings_ms: dict[str, float]
    """Milliseconds of each step; `total` includes what lies between."""


class NextRequest(_Request):
    """The next page of a frozen list."""

    cursor: Annotated[str, Field(min_length=1, max_length=MAX_CURSOR)]
    """`next_cursor` of the page before."""
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the page."""
    explain: Explain = "evidence"
    """Reasons, as in `/v1/recommend`."""


class BatchRequest(_Request):
    """Many requests."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"user_id": "196", "k": 10}, {"history": ["50"], "k": 5}]}]}
    )

    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_BATCH)]
    """Each as in `/v1/recommend`."""


class BatchEntry(_Response):
    """What became of one request of a batch."""

    status: int
    """As it would have been alone."""
    answer: RecommendResponse | None
    """With status 200."""
    problem: Problem | None
    """With any other."""


class BatchResponse(_Response):
    """The results, in the order of the requests."""

    results: list[BatchEntry]


class EventIn(_Request):
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


class RejectedEvent(_Response):
    """An event that was not stored."""

    event_id: str
    reason: str


class EventsResponse(_Response):
    """What became of the events. An accepted event survives a crash of any process."""

    accepted: int
    duplicates: int
    """Events that were stored already."""
    rejected: list[RejectedEvent]


class ItemIn(_Request):
    """All that is known of an item; what is left out is not known any more."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"title": "Heat (1995)", "categories": ["Action", "Crime"], "attributes": {"year": "1995"}}]
        }
    )

    title: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    categories: Annotated[list[Id], Field(max_length=MAX_CATEGORIES)] = []
    attributes: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=200)], AttributeValue], Field(max_length=MAX_ATTRIBUTES)
    ] = {}
    """Texts, or lists of them, of further columns of the catalogue, `/v1/model` names them; a number is written out."""


class ItemLine(ItemIn):
    """A line of a bulk upsert."""

    item_id: Id


class ItemChange(_Response):
    """What became of an item."""

    item_id: str
    outcome: Literal["created", "changed", "unchanged", "removed"]
    """`unchanged`: it was like that already."""
    status: ItemStatus
    """`generatable`: it has a semantic ID, so that every source may list it. `retrievable`: it is found by search and
    listed by all sources but the generator until it gets one, which takes moments; `GET` says when."""
    catalog_version: int
    """The first version of the catalogue that has the change; a recommendation of this or a later one knows it."""


class ItemLineResult(_Response):
    """What became of a line of a bulk upsert."""

    line: int
    """From 1."""
    item_id: str | None
    """Null where the line has none."""
    outcome: Literal["created", "changed", "unchanged", "rejected"]
    status: ItemStatus | None
    """Null for a line that was rejected."""
    reason: str | None
    """Why it was rejected."""


class ItemsResponse(_Response):
    """What became of the lines, in their order."""

    catalog_version: int
    created: int
    changed: int
    unchanged: int
    rejected: int
    results: list[ItemLineResult]


class ItemDetail(ItemSummary):
    """Everything known about an item."""

    status: ItemStatus
    """Whether it has a semantic ID, so that it can be generated, or is retrievable by all other sources until then."""
    interactions: int
    """In the data that the model was trained on."""
    attributes: dict[str, str | list[str] | None]
    """The catalogue's further columns."""


class ItemPage(_Response):
    """One page of a search in the catalogue."""

    items: list[ItemSummary]
    total: int


class Neighbour(ItemSummary):
    """An item whose semantic ID begins like that of another one."""

    shared: int
    """Codes that both begin with, at least 1."""


class Neighbours(_Response):
    """An item among those with similar semantic IDs."""

    item: ItemSummary
    sharing: list[int]
    """How many other items begin with its first code, with its first two codes, and so on."""
    neighbours: list[Neighbour]


class HistoryItem(_Response):
    """An entry of a user's history."""

    item_id: str
    title: str | None
    categories: list[str]
    event_type: str | None
    """Null for an entry that came with the data set."""
    timestamp: datetime | None
    """Null for an entry that came with the data set."""


class UserDetail(_Response):
    """A user and the newest part of the history."""

    user_id: str
    history: list[HistoryItem]
    """Oldest first."""


class ProfileIn(_Request):
    """What the user leaves of the profile, and adds to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"statements": ["Likes Drama (12 of 40).", "No musicals, please."], "revision": "5f0c1a7e90b2d3c4"}
            ]
        }
    )

    statements: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STATEMENT_LENGTH)]], Field(max_length=MAX_STATEMENTS)
    ]
    """Sentences in their order. One that stands in the profile stays as it is, any other is the user's own; what is
    left out is not said again."""
    revision: Annotated[str, Field(max_length=64)]
    """The `revision` of the profile that was read and is edited; the answer is 409 if it is another one by now."""


class EvidenceOut(_Response):
    """An event that supports a statement."""

    event: int
    """Its position in the history, from 0."""
    item_id: str
    title: str | None


class StatementOut(_Response):
    """One thing that is said about a user."""

    text: str
    source: StatementSource
    evidence: list[EvidenceOut]


class ProfileOut(_Response):
    """A user's profile in words."""

    user_id: str
    version: int
    revision: str
    """Names what the statements say; `PUT` gives it back."""
    upto: int
    """Entries of the history that it has read."""
    statements: list[StatementOut]
    edited: bool
    """Whether the user has ever edited it; one that was not is made from the history each time."""
    used_by_model: bool
    """Whether recommendations in mode `direct` are made with it: the user has edited it, and the model knows words.
    Else it is for display only."""


class InterestTag(_Response):
    """A kind of items that follows from an interest."""

    name: str
    items: int
    """How many the catalogue has, or had when the model's table was made."""


class InterestOut(_Response):
    """One thing that a user is into."""

    text: str
    weight: float
    """Comparable among the user's interests."""
    tags: list[InterestTag]
    """Best first."""
    evidence: list[EvidenceOut]
    """Events that bear it out, oldest first."""


class InterestsOut(_Response):
    """What a user is into, strongest first."""

    user_id: str
    interests: list[InterestOut]
    model_version: str


class UserPage(_Response):
    """One page of a search for users."""

    users: list[str]
    total: int


class CategoryCount(_Response):
    """A category and its size."""

    category: str
    items: int


class ModelResponse(_Response):
    """What is being served."""

    name: str
    model_version: str
    created_at: datetime
    num_items: int
    catalog_version: int
    """Each change of items since the bundle was made counts one."""
    catalog_columns: list[str]
    """What the catalogue knows of items beside title and categories: what `attributes` may hold."""
    libraries: dict[str, str]
    objectives: dict[str, float]
    """What the generator's heads are for, and how much each counts where a request does not say; empty for a model with
    one head."""
    loaded: list[str]
    """Versions of all models in memory, which a request may name as `model_version`."""


class LoadModel(_Request):
    """Which bundle to read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"bundle": "beauty"}]})

    bundle: Id
    """A bundle's or a run's directory, relative to the directory that holds the runs of the service."""


class ModelVersion(_Request):
    """A model in memory."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_version": "cc45bc8eaf75"}]})

    model_version: Id


class ShadowModel(_Request):
    """Who sees requests without answering them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model_version": "cc45bc8eaf75", "share": 0.1}, {"model_version": None}]}
    )

    model_version: Id | None
    """Null ends it."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Of the requests; fewer when the shadow is busy."""


class ModelState(_Response):
    """A model in memory."""

    model_version: str
    name: str
    created_at: datetime
    num_items: int
    state: Literal["active", "previous", "loaded", "shadow"]
    in_flight: int
    """Requests that are being answered by it."""


class ModelStates(_Response):
    """All models in memory."""

    models: list[ModelState]


class Health(_Response):
    """State of the service."""

    status: Literal["ok", "degraded", "unavailable"]
    """`degraded`: the store is down, and lists that need no user are still made."""
    checks: dict[str, str] = {}
    """What was looked at, by name: `ok` or what is wrong."""
