"""Filters as data: what they permit equals a look at one item after the other; what fits no table is named."""

from __future__ import annotations

import re
import time
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from recsys.generator.filters import (
    MAX_CONDITIONS,
    MAX_DEPTH,
    Filter,
    FilterError,
    FilterTable,
    Node,
    compiled,
    joined,
    resolved,
)
from recsys.generator.rules import mask

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d", "e"],
        "categories": [["x", "y"], ["y"], [], None, ["z", None]],
        "price": ["$1,200.50", "3", "about 7", None, "0.5"],
        "brand": ["Acme", None, " ", "Ab", "Acme"],
        "stock": [3, 0, None, 7, 1],
    },
    schema_overrides={"categories": pl.List(pl.String)},
)
_READER: TypeAdapter[Node] = TypeAdapter(Filter)


def _number(value: Any) -> float | None:
    """What `recsys.generator.rules` takes for a number."""
    if value is None or not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*\$?\s*(\d+(?:\.\d+)?)\s*", value.replace(",", ""))
    return float(found[1]) if found else None


def _holds(filtered: dict[str, Any], row: dict[str, Any]) -> bool:
    """The slow twin: one filter, one item, plain Python."""
    ((kind, asked),) = filtered.items()
    if kind == "and":
        return all(_holds(part, row) for part in asked)
    if kind == "or":
        return any(_holds(part, row) for part in asked)
    if kind == "not":
        return not _holds(asked, row)
    value = row[asked["column"]]
    if kind == "exists":
        entries = value if isinstance(value, list) else [value.strip() if isinstance(value, str) else value]
        return any(entry is not None and entry != "" for entry in entries)
    if kind == "range":
        number = _number(value)
        low, high = asked.get("min", -1e9), asked.get("max", 1e9)
        return number is not None and low <= number <= high
    wanted = asked["values"] if kind == "in" else [asked["value"]]
    entries = value if isinstance(value, list) else [value]
    return any(
        (entry == one if isinstance(one, str) else _number(entry) == one)
        for entry in entries
        for one in wanted
        if entry
    )


_texts = st.sampled_from(["Acme", "Ab", "3", "nowhere"])
_numbers = st.sampled_from([0.5, 3, 7, 1200.5, -1])
_flat = st.one_of(
    st.builds(lambda v: {"eq": {"column": "brand", "value": v}}, _texts),
    st.builds(lambda v: {"eq": {"column": "price", "value": v}}, _texts | _numbers),
    st.builds(lambda v: {"in": {"column": "price", "values": v}}, st.lists(_texts | _numbers, min_size=1, max_size=3)),
    st.builds(lambda v: {"in": {"column": "categories", "values": v}}, st.lists(st.sampled_from("xyzw"), min_size=1)),
    st.builds(lambda v: {"contains": {"column": "categories", "value": v}}, st.sampled_from("xyzw")),
    st.builds(lambda c: {"exists": {"column": c}}, st.sampled_from(ITEMS.columns)),
    st.builds(lambda c, v: {"range": {"column": c, "min": v}}, st.sampled_from(["price", "stock"]), _numbers),
    st.builds(lambda a, b: {"range": {"column": "price", "min": min(a, b), "max": max(a, b)}}, _numbers, _numbers),
)
_filters = st.recursive(
    _flat,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
).filter(lambda found: _depth(found) <= MAX_DEPTH)


def _depth(found: Any) -> int:
    ((kind, asked),) = found.items()
    parts = asked if kind in ("and", "or") else [asked] if kind == "not" else []
    return 1 + max(map(_depth, parts), default=0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_filters)
def test_a_filter_permits_what_looking_at_each_item_permits(found: dict[str, Any]) -> None:
    node = _READER.validate_python(found)
    permitted = mask(ITEMS, [compiled(node, FilterTable(ITEMS))]).tolist()
    assert permitted == [_holds(found, row) for row in ITEMS.iter_rows(named=True)]
    assert _READER.validate_json(_READER.dump_json(node, by_alias=True)) == node


@pytest.mark.parametrize(
    ("found", "place", "message"),
    [
        ({"eq": {"column": "color", "value": "red"}}, ("eq", "column"), "there are: item_id, categories, price"),
        ({"not": {"exists": {"column": "color"}}}, ("not", "exists", "column"), "no column 'color'"),
        (
            {"and": [{"exists": {"column": "brand"}}, {"range": {"column": "brand", "min": 1}}]},
            ("and", 1, "range", "column"),
            "'brand' holds no numbers; columns with numbers: price, stock",
        ),
        ({"range": {"column": "categories", "max": 1}}, ("range", "column"), "holds lists, no numbers"),
        ({"eq": {"column": "categories", "value": "x"}}, ("eq", "column"), "use contains"),
        ({"contains": {"column": "brand", "value": "x"}}, ("contains", "column"), "or one of: categories"),
        ({"in": {"column": "categories", "values": ["x", 1]}}, ("in", "values"), "give texts"),
        ({"eq": {"column": "stock", "value": "many"}}, ("eq", "value"), "give a number"),
        ({"named": "cheap"}, ("named",), "resolve it first"),
    ],
)
def test_what_does_not_fit_the_table_is_named_with_what_is_there(
    found: Any, place: tuple[str, ...], message: str
) -> None:
    with pytest.raises(FilterError, match=re.escape(message)) as caught:
        compiled(_READER.validate_python(found), FilterTable(ITEMS))
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"range": {"column": "price"}}, "give min, max or both"),
        ({"range": {"column": "price", "min": 2, "max": 1}}, "min must not be above max"),
        ({"range": {"column": "price", "min": float("nan")}}, "finite number"),
        ({"eq": {"column": "brand", "value": True}}, "finite number, or a text"),
        ({"eq": {"column": "brand", "value": 10**400}}, "finite number, or a text"),
        ({"in": {"column": "brand", "values": ["\ud800"]}}, "finite number, or a text"),
        ({"like": {"column": "brand"}}, "one of the keys and, or, not, eq"),
        ("brand", "one of the keys and, or, not, eq"),
        ({"eq": {"column": "brand", "value": "a"}, "not": {"named": "b"}}, "Extra inputs"),
        ({"and": []}, "at least 1 item"),
        ({"and": [{"named": "a"}] * MAX_CONDITIONS}, "may have 100 conditions"),
        ({"in": {"column": "brand", "values": ["a"] * 101}}, "at most 100 items"),
    ],
)
def test_what_is_no_filter_is_refused(found: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _READER.validate_python(found)


def test_depth_is_limited() -> None:
    found: dict[str, Any] = {"exists": {"column": "brand"}}
    for _ in range(MAX_DEPTH - 1):
        found = {"not": found}
    _READER.validate_python(found)
    with pytest.raises(ValidationError, match="nested 8 deep"):
        _READER.validate_python({"or": [{"named": "a"}, found]})


def test_long_lists_of_numbers_cost_no_more_than_short_ones() -> None:
    items = pl.DataFrame({"price": [f"${number % 7000}" for number in range(20_000)]})
    lists = [{"in": {"column": "price", "values": list(range(at * 100, at * 100 + 100))}} for at in range(60)]
    node = _READER.validate_python({"or": lists})
    started = time.process_time()
    permitted = mask(items, [compiled(node, FilterTable(items))])
    assert time.process_time() - started < 0.7
    assert permitted.tolist() == [number % 7000 < 6000 for number in range(20_000)]


def test_names_stand_for_their_filters() -> None:
    cheap = _READER.validate_python({"range": {"column": "price", "max": 5}})
    asked = _READER.validate_python({"or": [{"and": [{"not": {"named": "cheap"}}]}, {"exists": {"column": "brand"}}]})
    plain = _READER.validate_python(
        {"or": [{"and": [{"not": {"range": {"column": "price", "max": 5}}}]}, {"exists": {"column": "brand"}}]}
    )
    assert resolved(asked, {"cheap": cheap}) == plain
    assert resolved(joined([cheap, asked]), {"cheap": cheap}) == joined([cheap, plain])
    with pytest.raises(FilterError, match="no filter is named 'cheap'; there are: dear") as caught:
        resolved(asked, {"dear": cheap})
    assert caught.value.place == ("or", 0, "and", 0, "not", "named")
