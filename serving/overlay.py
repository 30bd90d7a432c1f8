"""What the catalogue became after the bundle was made: items that were put or removed. Knows no store and no model.

Items of the bundle keep their numbers (dense indices), whatever becomes of them; new ones are appended in the order in
which they were first put. A number therefore means the same item in all versions of a model's catalogue, and is never
given to another: cursors, batches and statistics stay right. What is removed stays in its row, and is not listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from pydantic import Field

from feature_store import StoredItem
from recsys.config import StrictConfig
from recsys.data import Catalog


class ItemFacts(StrictConfig):
    """What is known of an item, as it was put."""

    title: str | None = None
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, str | tuple[str, ...] | None] = Field(default_factory=dict)
    """Values of further columns of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class ChangedItem:
    """An item that was put or removed."""

    item_id: str
    facts: ItemFacts | None
    """None for an item of a bundle that was only removed."""
    number: int
    """In the order in which items were first put; -1 without `facts`."""
    is_removed: bool

    @classmethod
    def of(cls, stored: StoredItem) -> ChangedItem:
        """From the store."""
        return cls(
            item_id=stored.item_id,
            facts=None if stored.text is None else ItemFacts.model_validate_json(stored.text),
            number=-1 if stored.number is None else stored.number,
            is_removed=stored.is_removed,
        )


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """All changed items as of one version of the catalogue."""

    version: int = 0
    items: Mapping[str, ChangedItem] = field(default_factory=dict)

    def updated(self, version: int, changed: Iterable[StoredItem]) -> Overlay:
        """With further changes; this one stays as it is."""
        return Overlay(
            version=version, items={**self.items, **{item.item_id: ChangedItem.of(item) for item in changed}}
        )

    def added(self, base: Catalog) -> list[ChangedItem]:
        """The items that a bundle's catalogue does not have, in the order of their numbers; removed ones too."""
        with_facts = [item for item in self.items.values() if item.facts is not None]
        known = base.index_of([item.item_id for item in with_facts]) >= 0
        return sorted(
            (item for item, is_known in zip(with_facts, known, strict=True) if not is_known),
            key=lambda item: item.number,
        )


def rows_of(items: Sequence[ChangedItem], schema: pl.Schema) -> pl.DataFrame:
    """Rows of a catalogue, of items with facts; a value without a column, or with one of another form, is left out."""
    columns: dict[str, list[object]] = {name: [] for name in schema}
    for item in items:
        facts = item.facts
        assert facts is not None
        for name, dtype in schema.items():
            value: object
            if name == "item_id":
                value = item.item_id
            elif name == "title":
                value = facts.title
            elif name == "categories":
                value = list(facts.categories)
            else:
                value = facts.attributes.get(name)
                value = list(value) if isinstance(value, tuple) else value
                value = value if isinstance(value, list) == (dtype == pl.List(pl.String())) else None
            columns[name].append(value)
    return pl.DataFrame(columns, schema=schema)
