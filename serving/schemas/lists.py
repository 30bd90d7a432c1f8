"""Lists of items, with their reasons."""

from __future__ import annotations

from typing import Literal

from serving.answers import FallbackReason, Source
from serving.problems import Problem
from serving.schemas.fields import ResponseBody


class ItemSummary(ResponseBody):
    """An item as lists show it."""

    item_id: str
    title: str | None
    categories: list[str]
    sid: list[int]
    """The semantic ID: one code a level, coarse to fine; empty while it has none of its own."""


class Because(ResponseBody):
    """An item of the history."""

    item_id: str
    title: str | None


class ReasonOut(ResponseBody):
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


class RecommendResponse(ResponseBody):
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


class BatchEntry(ResponseBody):
    """What became of one request of a batch."""

    status: int
    """As it would have been alone."""
    answer: RecommendResponse | None
    """With status 200."""
    problem: Problem | None
    """With any other."""


class BatchResponse(ResponseBody):
    """The results, in the order of the requests."""

    results: list[BatchEntry]
