"""What is made of a catalogue beside models, and the same after a change of it, at the cost of what has changed.

A version shares with the one before it whatever is the same in both; what has a number or a bit an item is copied, a
few milliseconds for a million of them. Knows no model and no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recsys.data import Catalog
from recsys.data.sequences import IntArray
from recsys.generator.mask_counts import frozen
from recsys.retrieval.popularity import PopularityPrior
from serving.catalog_rules import CatalogRules
from serving.overlay import ChangedItem, Overlay, rows_of
from serving.search import CatalogSearch

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemTables:
    """Tables of one version of a catalogue."""

    catalog: Catalog
    rules: CatalogRules
    """What rules of requests need."""
    words: CatalogSearch
    """Finds items by their words."""
    popularity: PopularityPrior
    listed: BoolArray | None = None
    """bool [N]: items that are not removed; None: none is."""
    overlay: Overlay = field(default_factory=Overlay)
    """What was changed since the bundle was made."""
    added: tuple[str, ...] = ()
    """Ids of the items that the bundle does not have, in the order of their indices."""

    @classmethod
    def of(
        cls, catalog: Catalog, item_counts: IntArray, listed: BoolArray | None, rankable: BoolArray | None
    ) -> ItemTables:
        """Made anew.

        Args:
            catalog: all items.
            item_counts: int64 [N], interactions of each.
            listed: bool [N], items that are not removed; None: all.
            rankable: bool [N], those of them that the generator can score; None: all.
        """
        return cls(
            catalog=catalog,
            rules=CatalogRules(catalog, listed, rankable),
            words=CatalogSearch(catalog, item_counts, listed),
            popularity=PopularityPrior(item_counts),
            listed=listed,
        )

    def precedes(self, overlay: Overlay, added: Sequence[ChangedItem]) -> bool:
        """Whether `over` can go on from here: all added items have their numbers here already, or come behind them."""
        ids = tuple(item.item_id for item in added[: len(self.added)])
        return overlay.version >= self.overlay.version and ids == self.added

    def over(self, overlay: Overlay, added: Sequence[ChangedItem], generatable: BoolArray | None) -> ItemTables:
        """The tables after further changes; these stay as they are.

        Args:
            overlay: all changes since the bundle was made.
            added: items that the bundle does not have, see `precedes`.
            generatable: bool [N'], items with a semantic ID of their own; None: all.
        """
        number = {item.item_id: self.catalog.num_items + place for place, item in enumerate(added[len(self.added) :])}
        # One that no semantic ID was left for was known before it has a row.
        known = {item_id: item for item_id, item in self.overlay.items.items() if item_id not in number}
        changed = [item for item in overlay.items.values() if known.get(item.item_id) is not item]
        for item, index in zip(
            changed, self.catalog.index_of([item.item_id for item in changed]).tolist(), strict=True
        ):
            if index >= 0:
                number[item.item_id] = index
        listed = np.ones(self.catalog.num_items, dtype=bool) if self.listed is None else self.listed
        listed = np.pad(listed, (0, len(added) - len(self.added)), constant_values=True)
        texts: list[tuple[int, ChangedItem]] = []
        for item in changed:
            if item.item_id not in number:
                continue  # no semantic ID is left for it
            listed[number[item.item_id]] = not item.is_removed
            before = known.get(item.item_id)
            if item.facts is not None and (before is None or before.facts != item.facts):
                texts.append((number[item.item_id], item))
        texts.sort(key=lambda entry: entry[0])
        at = np.array([index for index, _ in texts], dtype=np.int64)
        rows = rows_of([item for _, item in texts], self.catalog.frame.schema)
        catalog = self.catalog.with_rows(rows, at) if texts else self.catalog
        popularity = self.popularity.with_items(catalog.num_items - self.catalog.num_items)
        there = None if listed.all() else frozen(listed)
        rankable = there if generatable is None else (generatable if there is None else there & generatable)
        return ItemTables(
            catalog=catalog,
            rules=self.rules.over(catalog, rows, at, there, rankable),
            words=self.words.over(rows, at, popularity.counts[at], there),
            popularity=popularity,
            listed=there,
            overlay=overlay,
            added=tuple(item.item_id for item in added),
        )
