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
    code_log_probs: list[float] | None
    """With `details`: what the generator says of each code of `sid`, given those that it emits before it. Together they
    are its log-probability of the item, which in a list of source `generator` is the score without boosts. Null for a
    list that does not follow from a history alone, and for an item without a semantic ID."""


class TouchedItem(ResponseBody):
    """An item of the list that a rule had to do with."""

    item_id: str
    place: int
    """1 is the top."""
    without: int | None
    """Its place without this rule, if it were long enough; null for a rule that leaves items out, or pins them."""


class FiredRule(ResponseBody):
    """A rule that had to do with a list."""

    field: str
    """As in the request, such as `boosts[0]`, or in the settings of the service: `always.in_stock`."""
    effect: str
    """What it did, in words."""
    left_out: int
    """Items that it keeps out: of the catalogue, whether they would have been in the list or not; by boosts and
    diversity, of those that would."""
    items: list[TouchedItem]
    """Items of the whole list, further pages included; by boosts and diversity, those that they moved."""


class ListDetails(ResponseBody):
    """How a list came about."""

    stage: str
    """What made it: its `source`, or a part of that such as `generator_half`, with half of the beams, and `profile`."""
    rules: list[FiredRule]
    """Those that touched it. Caps are told of where a value has all the items that it may have."""


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
    details: ListDetails | None
    """Null unless the request wants `details`; further pages have none."""
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
