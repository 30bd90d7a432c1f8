"""Which rules of a request touched its list, and what they did. Found out afterwards: who does not ask pays nothing.

Filters and exclusions are told of by what they keep out of the catalogue, since no second search is made that would say
what would have been in the list; boosts and diversity by where the candidates would stand without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recsys.data.sequences import IntArray
from recsys.generator.filters import resolved
from serving.answers import Answer, Pinned, Query
from serving.arranging import Arrangement, arrange
from serving.asking import most_per_value
from serving.catalog_rules import CATEGORIES, BoolArray
from serving.runtime import RecommenderRuntime
from serving.schemas.rules import Rules
from serving.settings import ServingSettings


@dataclass(frozen=True, kw_only=True)
class Touched:
    """An item of the list (dense index) that a rule had to do with."""

    item: int
    place: int
    """1 is the top."""
    without: int | None = None
    """Its place without this rule; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Fired:
    """A rule that had to do with a list."""

    field: str
    """Of the request, or of the service's settings."""
    effect: str
    left_out: int = 0
    """Items that it keeps out: of the catalogue; for boosts and diversity, of those that would be in the list."""
    touched: tuple[Touched, ...] = ()


def fired_rules(
    rules: Rules, query: Query, answer: Answer, shown: Answer, runtime: RecommenderRuntime, settings: ServingSettings
) -> list[Fired]:
    """The rules that touched a list, in the order in which they act.

    Args:
        rules: as the request has them.
        query: as the model was asked.
        answer: of the model, before it was shown.
        shown: what of it the list is, with pins.
        runtime: the model.
        settings: with the filters that always hold.

    Raises:
        RuleError: a rule does not fit the catalogue; it did when the list was made.
    """
    places = {item: place for place, item in enumerate(shown.items, start=1)}
    return [
        *_left_out(rules, query, runtime, settings),
        *_full(query, runtime, places),
        *_moved(query, answer, runtime, places),
        *_pinned(rules, runtime, shown, places),
    ]


def _left_out(rules: Rules, query: Query, runtime: RecommenderRuntime, settings: ServingSettings) -> Iterator[Fired]:
    catalog, found = runtime.catalog, runtime.rules
    listed = np.ones(catalog.num_items, dtype=bool) if found.listed is None else found.listed
    kept: dict[str, BoolArray] = {
        f"always.{name}": found.permitted(settings.filters[name], ("filters", name)) for name in settings.always
    }
    if rules.categories:
        kept[CATEGORIES] = found.in_categories(rules.categories)
    if rules.filter is not None:
        kept["filter"] = found.permitted(resolved(rules.filter, settings.filters, ("filter",)))
    if rules.exclude:
        kept["exclude"] = _others(catalog.index_of(rules.exclude), catalog.num_items)
    if query.exclude_seen and query.task == "next":
        seen = catalog.index_of(query.history)
        kept["exclude_seen"] = _others(
            seen if query.seen_window is None else seen[-query.seen_window :], catalog.num_items
        )
    for field, permitted in kept.items():
        if count := int((listed & ~permitted).sum()):
            yield Fired(field=field, effect=f"keeps {count} of {int(listed.sum())} items out", left_out=count)


def _others(items: IntArray, num_items: int) -> BoolArray:
    """bool [num_items]: all but these; negative ones are unknown."""
    others = np.ones(num_items, dtype=bool)
    others[items[items >= 0]] = False
    return others


def _full(query: Query, runtime: RecommenderRuntime, places: Mapping[int, int]) -> Iterator[Fired]:
    for column, most in most_per_value(query).items():
        found = runtime.catalog.frame[column].gather(list(places)).to_list()
        values = dict(zip(places, map(_values, found), strict=True))
        counts = Counter(value for each in values.values() for value in each)
        full = {value for value, count in counts.items() if count >= most}
        if full:
            yield Fired(
                field=f"max_per.{column}" if column in query.max_per else "max_per_category",
                effect=f"lets no more in of: {', '.join(sorted(full))}",
                touched=tuple(Touched(item=item, place=place) for item, place in places.items() if values[item] & full),
            )


def _values(value: str | list[str | None] | None) -> set[str]:
    return {str(each) for each in (value if isinstance(value, list) else [value]) if each is not None}


def _moved(query: Query, answer: Answer, runtime: RecommenderRuntime, places: Mapping[int, int]) -> Iterator[Fired]:
    """What boosts and diversity did: the candidates are arranged again without each.

    What exploration drew is no rule's doing: orders are compared as they were before that.
    """
    if answer.candidates is None:
        return
    asked, _ = runtime.ask(query)
    whole, candidates = asked.arrangement, answer.candidates
    assert whole is not None, "candidates are those of an arrangement"
    arranged, length = _places(answer.items, answer.pins), len(places)

    def fired(field: str, effect: str, less: Arrangement) -> Iterator[Fired]:
        order, _ = arrange(candidates.items, candidates.scores, less, runtime.nearness.directions_of)
        without = _places(order.tolist(), answer.pins)
        moved = [item for item in places if without.get(item, arranged[item]) != arranged[item]]
        num_out = sum(place <= length < arranged.get(item, length + 1) for item, place in without.items())
        if moved or num_out:
            yield Fired(
                field=field,
                effect=f"{effect}: {len(moved)} items of the list stand elsewhere, {num_out} would be in it",
                left_out=num_out,
                touched=tuple(Touched(item=item, place=places[item], without=without[item]) for item in moved),
            )

    for index, (_, weight) in enumerate(whole.boosts):
        others = [each for place, each in enumerate(whole.boosts) if place != index]
        yield from fired(f"boosts[{index}]", f"adds {weight:g} to scores", replace(whole, boosts=others))
    if whole.diversity:
        yield from fired("diversity", "moves down what is like the items before", replace(whole, diversity=0.0))


def _places(order: list[int], pins: Sequence[Pinned]) -> dict[int, int]:
    """Places of items in the list that they make with pins, as long as it would be."""
    for pin in sorted(pins, key=lambda pin: pin.position):
        order.insert(min(pin.position - 1, len(order)), pin.item)
    return {item: place for place, item in enumerate(order, start=1)}


def _pinned(rules: Rules, runtime: RecommenderRuntime, shown: Answer, places: Mapping[int, int]) -> Iterator[Fired]:
    for index, pin in enumerate(rules.pins):
        item = None if pin.item_id in shown.dropped_pins else runtime.find(pin.item_id)
        if item is None:
            yield Fired(field=f"pins[{index}]", effect="is not in the list: it is unknown, or a filter forbids it")
        elif item in places:
            touched = (Touched(item=item, place=places[item]),)
            yield Fired(field=f"pins[{index}]", effect=f"stands at place {places[item]}", touched=touched)
