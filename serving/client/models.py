"""What goes to the API and comes from it. Fields that a newer service adds are ignored."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypedDict

from pydantic import BaseModel, ConfigDict, Field

Explain: TypeAlias = Literal["none", "evidence", "intent"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Item(_Answer):
    """An item of the catalogue."""

    item_id: str
    title: str | None
    categories: tuple[str, ...]
    sid: tuple[int, ...]
    """The semantic ID: one code a level, coarse to fine."""


class ItemDetail(Item):
    """All that is known of an item."""

    status: str
    """`generatable`: it has a semantic ID. `retrievable`: it waits for one."""
    interactions: int
    """In the data that the model was trained on."""
    attributes: dict[str, str | tuple[str, ...] | None]
    """Further columns of the catalogue."""


class NewItem(BaseModel):
    """All that is to be known of an item; it takes the place of what was known."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    attributes: dict[str, str | tuple[str, ...] | None] = {}
    """Texts, or lists of them, of further columns of the catalogue; `Client.model` names them."""


class ItemChange(_Answer):
    """What became of an item that was put or deleted."""

    item_id: str
    outcome: str
    """`created`, `changed`, `unchanged` or `removed`."""
    status: str
    """`generatable`: every source may list it. `retrievable`: every source but the generator, until it has a semantic
    ID. `removed`: none."""
    catalog_version: int
    """The first version of the catalogue that has the change."""


class ItemLineResult(_Answer):
    """What became of one of many items."""

    line: int
    """Its place, from 1."""
    item_id: str | None
    outcome: str
    """`created`, `changed`, `unchanged` or `rejected`."""
    status: str | None
    reason: str | None
    """Why it was rejected."""


class ItemsResult(_Answer):
    """What became of many items."""

    catalog_version: int
    created: int
    changed: int
    unchanged: int
    rejected: int
    results: tuple[ItemLineResult, ...]
    """In the order of the items."""


class Neighbour(Item):
    """An item whose semantic ID begins like that of another one."""

    shared: int
    """Codes that both begin with."""


class Neighbours(_Answer):
    """An item among those with similar semantic IDs, the nearest first."""

    item: Item
    sharing: tuple[int, ...]
    """How many other items begin with its first code, with its first two codes, and so on."""
    neighbours: tuple[Neighbour, ...]


class ItemPage(_Answer):
    """One page of a search in the catalogue."""

    items: tuple[Item, ...]
    total: int


class Because(_Answer):
    """An item of a history."""

    item_id: str
    title: str | None


class Reason(_Answer):
    """Why an item is in a list."""

    text: str
    because: Because | None
    """The item of the history that is most like it."""
    similarity: float | None
    tags: tuple[str, ...] = ()
    """By intent: the kind of items that the user is into and that this is one of."""
    evidence: tuple[Because, ...] = ()
    """Items of the history that bear it out, best first."""


class RecommendedItem(Item):
    """An item of a list."""

    score: float | None
    """Log-probability, with the item's boosts; comparable within a list. None for an item that was pinned."""
    source: str
    """What listed it; `pin` for an item that was pinned."""
    reason: Reason | None
    """None where none was wanted."""
    code_log_probs: tuple[float, ...] | None = None
    """With `details`: the generator's log-probability of each code of `sid`."""


class TouchedItem(_Answer):
    """An item of the list that a rule had to do with."""

    item_id: str
    place: int
    """1 is the top."""
    without: int | None
    """Its place without this rule; None for a rule that leaves items out, or pins them."""


class FiredRule(_Answer):
    """A rule that had to do with a list."""

    field: str
    """As in the request, such as `boosts[0]`, or in the settings of the service: `always.in_stock`."""
    effect: str
    left_out: int
    """Items that it keeps out."""
    items: tuple[TouchedItem, ...]


class ListDetails(_Answer):
    """How a list came about."""

    stage: str
    """What made it: its source, or a part of that."""
    rules: tuple[FiredRule, ...]
    """Those that touched it."""


class Recommendations(_Answer):
    """A ranked list, best first."""

    recommendation_id: str
    items: tuple[RecommendedItem, ...]
    source: str
    """What made the list: `generator`, `fusion`, `reasoning`, `dense`, `words`, `counter` or `popularity`."""
    fallback_reason: str | None
    """Why it is not of the best source; None when it is."""
    unknown_items: tuple[str, ...]
    """Ids that the catalogue does not have."""
    next_cursor: str | None = None
    """For `Client.next_page`: what is left of a list that `depth` froze; None for nothing. It expires."""
    degraded: bool = False
    """Whether the service in good health would have given a better list."""
    chains: tuple[str, ...] = ()
    """The reasons that a list of source `reasoning` follows from, in the model's own words."""
    used_profile: bool = False
    """Whether the model read any of the user's profile before the history."""
    details: ListDetails | None = None
    """How the list came about, where that was asked for."""
    dropped_pins: tuple[str, ...] = ()
    """Items that were to be pinned and are in no list: the catalogue does not have them, or a filter forbids them."""
    variants: dict[str, str] = {}
    """The variant of each experiment that the user is in."""
    model_version: str
    catalog_version: int = 0
    """0: the catalogue of the model's bundle; each change of items since then counts one."""
    timings_ms: dict[str, float] = {}
    """Milliseconds of each step in the service; `total` includes what lies between."""


class Problem(_Answer):
    """Why a request was refused."""

    title: str
    status: int
    detail: str
    """What is wrong and what to do, in one line."""
    fields: tuple[dict[str, str], ...] = ()
    """The offending fields: `field` and `message` of each."""


class BatchEntry(_Answer):
    """What became of one request of a batch."""

    status: int
    """As it would have been alone."""
    answer: Recommendations | None
    """With status 200."""
    problem: Problem | None
    """With any other."""


class BatchResult(_Answer):
    """What became of a batch, in the order of its requests."""

    results: tuple[BatchEntry, ...]


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Pin(_Asked):
    """An item with a fixed place."""

    item_id: str
    position: int
    """1 is the top."""


class Boost(_Asked):
    """What is added to the scores of some items: of those that a filter permits, or of these."""

    weight: float
    """Scores are log-probabilities: 0.7 doubles an item's odds, -0.7 halves them."""
    filter: dict[str, Any] | None = None
    item_ids: tuple[str, ...] | None = None


class Rules(_Asked):
    """What may stand in a list, and where; a field that is left out changes nothing."""

    filter: dict[str, Any] | None = None
    """Only items for which it holds, such as `{"not": {"contains": {"column": "categories", "value": "Horror"}}}`, or
    `{"named": "in_stock"}` for one of the service's settings."""
    exclude: tuple[str, ...] | None = None
    """Item ids that must not appear."""
    categories: tuple[str, ...] | None = None
    """Only items with at least one of these."""
    max_per_category: int | None = None
    """At most so many items of any one category."""
    max_per: dict[str, int] | None = None
    """By column of the catalogue: at most so many items of any one of its values."""
    pins: tuple[Pin, ...] | None = None
    boosts: tuple[Boost, ...] | None = None
    diversity: float | None = None
    """0 .. 1: items that are like those before them move down."""


class Options(TypedDict, total=False):
    """What a request for a list may say; what is left out is as the service has it."""

    history: Sequence[str]
    """Item ids, oldest first. Give these or a user."""
    k: int
    """Length of the list, or of its first page."""
    depth: int
    """Freeze a list of this length, of which `k` items are the first page."""
    exclude: Sequence[str]
    """Item ids that must not appear."""
    categories: Sequence[str]
    """Only items with at least one of these; no filter when empty."""
    max_per_category: int
    """At most so many items of any one category."""
    exclude_seen: bool | Literal["none", "window", "all"]
    """Leave out the items of the history; with `window`, those of its last `seen_window` entries."""
    seen_window: int
    """Entries of the history, with `exclude_seen="window"`."""
    mode: Literal["direct", "reason"]
    """`reason` writes reasons first, which takes seconds."""
    explain: Explain
    """What is said of why: nothing, like items of the history, or tags of the user's interests."""
    details: bool
    """Say how the list came about: codes, stage, rules."""
    objectives: Mapping[str, float]
    """How much each counts in this list, by the names in `objectives` of `Client.model`."""
    model_version: str
    """A model in memory that shall answer instead of the active one."""
    rules: Rules
    """What else may stand in the list, and where; the options above win over its fields of their name."""


class Request(Options, total=False):
    """A request of a batch."""

    user_id: str
    """A user of the store. Give this or `history`."""


class Event(BaseModel):
    """What a user did. Sent again, with the id that it got when it was made, it counts once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    user_id: str
    item_id: str
    event_type: str = "view"
    timestamp: datetime | None = None
    """When it happened; the time of arrival when left out."""
    recommendation_id: str | None = None
    """Of the list that the item was taken from; experiments are judged by it."""
    event_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Unique among the user's events. Keep it when you send the event again yourself."""


class RejectedEvent(_Answer):
    """An event that was not stored."""

    event_id: str
    reason: str


class EventsResult(_Answer):
    """What became of the events."""

    accepted: int
    duplicates: int
    """Events that were stored already, such as by an attempt whose answer was lost."""
    rejected: tuple[RejectedEvent, ...]


class HistoryItem(_Answer):
    """An entry of a user's history."""

    item_id: str
    title: str | None
    categories: tuple[str, ...] = ()
    event_type: str | None
    timestamp: datetime | None


class User(_Answer):
    """A user and the newest part of the history, oldest first."""

    user_id: str
    history: tuple[HistoryItem, ...]


class Evidence(_Answer):
    """An event of a history."""

    event: int
    """Its position, from 0."""
    item_id: str
    title: str | None


class InterestTag(_Answer):
    """A kind of items."""

    name: str
    items: int
    """How many there are."""


class Interest(_Answer):
    """One thing that a user is into."""

    text: str
    weight: float
    """Comparable among the user's interests."""
    tags: tuple[InterestTag, ...]
    """Kinds of items that follow from it, best first."""
    evidence: tuple[Evidence, ...]
    """Events that bear it out, oldest first."""


class Interests(_Answer):
    """What a user is into, strongest first."""

    user_id: str
    interests: tuple[Interest, ...]
    model_version: str


class Model(_Answer):
    """What is being served."""

    name: str
    model_version: str
    created_at: datetime
    num_items: int
    catalog_version: int = 0
    catalog_columns: tuple[str, ...] = ()
    """What items have beside title and categories."""
    objectives: dict[str, float] = {}
    """What `objectives` of a request may weigh, with the weights that hold without them."""
    has_intents: bool = False
    """Whether reasons by intent and interests say more than without."""
    libraries: dict[str, str] = {}
    """With their versions."""
    loaded: tuple[str, ...] = ()
    """Versions of all models in memory, which a request may name."""
