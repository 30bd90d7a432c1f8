"""What a request may ask of a list: filters, pins, caps, boosts, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from feature_store.events import MAX_ID_LENGTH
from recsys.generator.filters import MAX_CONDITIONS, Filter, num_conditions
from serving.schemas.fields import MAX_CATEGORIES, Id, RequestBody

MAX_K = 100
MAX_EXCLUDE = 1000
MAX_CAPS = 5
MAX_PINS = 20
MAX_BOOSTS = 20
MAX_BOOST = 100


class PinIn(RequestBody):
    """An item with a fixed place."""

    item_id: Id
    position: Annotated[int, Field(ge=1, le=MAX_K)]
    """1 is the top."""


class BoostIn(RequestBody):
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


class Rules(RequestBody):
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
    """Added to scores, all that apply to an item together. Their filters and `filter` may have 100 conditions."""
    diversity: Diversity = 0.0
    """Above 0 items that are like those before them move down; at 1 only the first item is there for its score."""

    @property
    def num_conditions(self) -> int:
        """Conditions of `filter` and of the filters of boosts."""
        filters = [self.filter, *(boost.filter for boost in self.boosts)]
        return sum(num_conditions(each) for each in filters if each is not None)

    @model_validator(mode="after")
    def _filters_cost_little(self) -> Self:
        if (count := self.num_conditions) > MAX_CONDITIONS:
            raise ValueError(
                f"filter and boosts may have {MAX_CONDITIONS} conditions together, got {count}; use in for many values"
            )
        return self

    @model_validator(mode="after")
    def _pins_can_stand(self) -> Self:
        ids, places = [pin.item_id for pin in self.pins], [pin.position for pin in self.pins]
        if len(set(ids)) < len(ids) or len(set(places)) < len(places):
            raise ValueError("pins must be different items at different positions")
        if both := sorted(set(ids) & set(self.exclude)):
            raise ValueError(f"{both[0]!r} is in pins and in exclude; take it out of one of them")
        return self


def check_places(pins: Sequence[PinIn], length: int) -> None:
    """Check that pins stand in a list of this length.

    Raises:
        ValueError: one does not.
    """
    for pin in pins:
        if pin.position > length:
            raise ValueError(f"a pin's position must be in the list, 1 to {length}, got {pin.position}")
