"""Requests for lists, for their next pages, and many of them at a time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from serving.answers import Explain, Mode
from serving.schemas.fields import MAX_QUERY, Id, RequestBody
from serving.schemas.rules import MAX_K, Rules, check_places

MAX_HISTORY = 500
MAX_DEADLINE_MS = 600_000
MAX_BATCH = 100
MAX_BATCH_CONDITIONS = 1000
"""Of the filters of all requests of a batch together."""
MAX_CURSOR = 8000
MAX_RANKED = 500
MAX_OBJECTIVES = 20


class Explained(RequestBody):
    """What an answer says of how its list came about."""

    explain: Explain = "evidence"
    """Reasons: `none` at all; by `evidence`, the items of the history that each item is most like; by `intent`, the tag
    of the user's interests that it fits, with a text from the model's table, else written while time is left. What fits
    no tag, or has no text that may be shown, gets evidence, and so does all that a model without such a table lists."""
    details: bool = False
    """For whoever looks into a list: what the generator says of each code of its items, the stage of the model that
    made it, and which rules touched it. It costs about as much as a small list more."""


class RecommendRequest(Rules, Explained):
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

    @model_validator(mode="after")
    def _one_of_user_and_history(self) -> RecommendRequest:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        return self

    @model_validator(mode="after")
    def _no_page_is_longer_than_the_list(self) -> RecommendRequest:
        if self.depth is not None and self.depth < self.k:
            raise ValueError(f"depth must be at least k, got depth {self.depth} and k {self.k}")
        check_places(self.pins, self.depth or self.k)
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


class SimilarRequest(Rules, Explained):
    """An item, and what may stand in the list of those that are like it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"item_id": "50", "k": 5, "max_per": {"categories": 2}}]},
    )

    item_id: Id
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the list."""

    @model_validator(mode="after")
    def _pins_are_in_the_list(self) -> SimilarRequest:
        check_places(self.pins, self.k)
        return self


class SearchRequest(Rules, Explained):
    """Words, and what may stand in the list of the items that they describe."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "star wars", "k": 5}]})

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY, pattern=r"\S")]
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the list."""

    @model_validator(mode="after")
    def _pins_are_in_the_list(self) -> SearchRequest:
        check_places(self.pins, self.k)
        return self


class RankRequest(Explained):
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


class NextRequest(RequestBody):
    """The next page of a frozen list."""

    cursor: Annotated[str, Field(min_length=1, max_length=MAX_CURSOR)]
    """`next_cursor` of the page before."""
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    """Length of the page."""
    explain: Explain = "evidence"
    """Reasons, as in `/v1/recommend`."""


class BatchRequest(RequestBody):
    """Many requests."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"user_id": "196", "k": 10}, {"history": ["50"], "k": 5}]}]}
    )

    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_BATCH)]
    """Each as in `/v1/recommend`; the filters of all of them may have 1000 conditions together."""
