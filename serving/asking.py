"""From a query to the catalogue's numbers: which items are asked about, allowed, denied. Knows no model and no HTTP."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from recsys.data import Catalog
from recsys.data.sequences import IntArray
from recsys.generator.constraints import Cap
from recsys.generator.lm.reason import ReasonConfig
from serving.answers import Boost, Pinned, Query
from serving.arranging import Arrangement
from serving.catalog_rules import CATEGORIES, BoolArray, CatalogRules, filter_key
from serving.stages import Asked


def asked_of(
    query: Query, catalog: Catalog, rules: CatalogRules, reason: ReasonConfig | None = None
) -> tuple[Asked, list[str]]:
    """`query` in the catalogue's numbers, and the ids of it that the catalogue does not have.

    A removed item is read in a history and otherwise like one that there never was; one without a semantic ID of its
    own cannot be ranked.

    Args:
        query: the request.
        catalog: all items.
        rules: of the same catalogue.
        reason: how reasons are written; the default when None.

    Raises:
        RuleError: a rule of it does not fit the catalogue.
    """
    whole, excluded = catalog.index_of(query.history), catalog.index_of(query.exclude)
    ranked = _among(catalog.index_of(query.items), rules.rankable)
    pinned = _among(catalog.index_of([pin.item_id for pin in query.pins]), rules.listed)
    boosted = [catalog.index_of(boost.item_ids) for boost in query.boosts]
    named = [(query.history, whole), (query.exclude, excluded), (query.items, ranked)]
    named.append(([pin.item_id for pin in query.pins], pinned))
    named += [(boost.item_ids, items) for boost, items in zip(query.boosts, boosted, strict=True)]
    unknown = [item_id for ids, items in named for item_id, item in zip(ids, items, strict=True) if item < 0]
    history = whole[whole >= 0]
    allow = _allowed(query, rules, catalog.num_items, ranked[ranked >= 0])
    can_stand = np.array([item >= 0 and (allow is None or allow[item]) for item in pinned], dtype=bool)
    pinned_here = pinned[can_stand]
    denied = [excluded[excluded >= 0], pinned_here]
    if query.exclude_seen:
        seen = whole if query.seen_window is None else whole[-query.seen_window :]
        denied.append(seen[seen >= 0])
    caps, caps_key = _caps(query, rules, pinned_here)
    arrangement = None
    if query.boosts or query.diversity:
        arrangement = Arrangement(
            boosts=[
                (_boosted(boost, place, items[items >= 0], rules, catalog.num_items), boost.weight)
                for place, (boost, items) in enumerate(zip(query.boosts, boosted, strict=True))
            ],
            diversity=query.diversity,
        )
    asked = Asked(
        k=_length(query, len(pinned_here), len(ranked)),
        history=history,
        denied=np.unique(np.concatenate(denied)),
        allow=allow,
        allow_key=(tuple(sorted(set(query.categories))), None if query.filter is None else filter_key(query.filter)),
        caps=caps,
        caps_key=caps_key,
        items=np.unique(ranked[ranked >= 0]),
        words=query.words,
        arrangement=arrangement,
        pins=tuple(
            Pinned(item=int(item), position=pin.position)
            for pin, item, stands in zip(query.pins, pinned, can_stand, strict=True)
            if stands
        ),
        dropped_pins=tuple(pin.item_id for pin, stands in zip(query.pins, can_stand, strict=True) if not stands),
        objectives=tuple(sorted(query.objectives.items())),
        session=query.session,
        profile=query.profile,
        reason=reason or ReasonConfig(),
    )
    return asked, list(dict.fromkeys(unknown))


def is_quick(query: Query, rules: CatalogRules) -> bool:
    """Whether nothing of `query` needs a look at the whole catalogue that was not taken before."""
    nodes = [boost.filter for boost in query.boosts if boost.filter is not None]
    if query.filter is not None:
        nodes.append(query.filter)
    return rules.has_ready(nodes, tuple(most_per_value(query)))


def _among(items: IntArray, there: BoolArray | None) -> IntArray:
    """int64: `items`, with -1 for those that are not `there` (bool [num_items], None: all are)."""
    return items if there is None else np.where((items >= 0) & there[items], items, -1)


def _allowed(query: Query, rules: CatalogRules, num_items: int, ranked: IntArray) -> BoolArray | None:
    if query.task == "rank":
        allow = np.zeros(num_items, dtype=bool)
        allow[ranked] = True
        return allow
    return rules.allowed(query.categories, query.filter)


def most_per_value(query: Query) -> dict[str, int]:
    """By column, how many items of one value a list may have; where both caps speak of categories, the smaller one."""
    most = dict(query.max_per)
    if query.max_per_category is not None:
        most[CATEGORIES] = min(query.max_per_category, most.get(CATEGORIES, query.max_per_category))
    return most


def _caps(query: Query, rules: CatalogRules, pinned: IntArray) -> tuple[list[Cap], Hashable]:
    """The caps, in which pinned items count, and what names them."""
    most = most_per_value(query)
    caps = [
        Cap(groups=rules.groups(column, ("max_per", column)), most=count, given=pinned)
        for column, count in most.items()
    ]
    return caps, (tuple(sorted(most.items())), tuple(sorted(pinned.tolist()))) if caps else ()


def _boosted(boost: Boost, place: int, items: IntArray, rules: CatalogRules, num_items: int) -> BoolArray:
    if boost.filter is not None:
        return rules.permitted(boost.filter, ("boosts", place, "filter"))
    chosen = np.zeros(num_items, dtype=bool)
    chosen[items] = True
    return chosen


def _length(query: Query, num_pinned: int, num_ranked: int) -> int:
    """How many items the sources are asked for: beside those that are pinned, and from which boosts, diversity and
    exploration can choose."""
    if query.task == "rank":
        return max(1, num_ranked)
    candidates = query.candidates if query.boosts or query.diversity else 0
    return max(1, max(query.k, query.drawn_from) - num_pinned, candidates)
