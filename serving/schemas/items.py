"""The catalogue: items as they are read, changed and browsed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serving.answers import ItemStatus
from serving.schemas.fields import MAX_CATEGORIES, MAX_TEXT, Id, RequestBody, ResponseBody, Text
from serving.schemas.lists import ItemSummary

MAX_ATTRIBUTES = 100
MAX_LINES = 5000
AttributeValue = Text | Annotated[list[Text], Field(max_length=MAX_CATEGORIES)] | None


class ItemIn(RequestBody):
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


class ItemChange(ResponseBody):
    """What became of an item."""

    item_id: str
    outcome: Literal["created", "changed", "unchanged", "removed"]
    """`unchanged`: it was like that already."""
    status: ItemStatus
    """`generatable`: it has a semantic ID, so that every source may list it. `retrievable`: it is found by search and
    listed by all sources but the generator until it gets one, which takes moments; `GET` says when."""
    catalog_version: int
    """The first version of the catalogue that has the change; a recommendation of this or a later one knows it."""


class ItemLineResult(ResponseBody):
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


class ItemsResponse(ResponseBody):
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


class ItemPage(ResponseBody):
    """One page of a search in the catalogue."""

    items: list[ItemSummary]
    total: int


class Neighbour(ItemSummary):
    """An item whose semantic ID begins like that of another one."""

    shared: int
    """Codes that both begin with, at least 1."""


class Neighbours(ResponseBody):
    """An item among those with similar semantic IDs."""

    item: ItemSummary
    sharing: list[int]
    """How many other items begin with its first code, with its first two codes, and so on."""
    neighbours: list[Neighbour]


class CategoryCount(ResponseBody):
    """A category and its size."""

    category: str
    items: int
