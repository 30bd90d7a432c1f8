"""What rules need of a catalogue: groups as the plain way makes them, bitmaps that are kept but not for ever."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.data import Catalog
from recsys.generator import Groups
from recsys.generator.filters import Eq, Equality
from serving import catalog_rules
from serving.catalog_rules import CatalogRules, RuleError
from serving.column_groups import ColumnGroups

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d", "e"],
        "title": ["T", None, "T", "U", ""],
        "categories": [["x", "y", "x"], [], ["y", None], None, ["z"]],
    },
    schema_overrides={"categories": pl.List(pl.String)},
)


@pytest.fixture
def rules() -> CatalogRules:
    return CatalogRules(Catalog(frame=ITEMS))


@pytest.mark.parametrize("column", ["categories", "title", "item_id"])
def test_groups_are_those_of_the_labels(rules: CatalogRules, column: str) -> None:
    values = ITEMS[column].to_list()
    labels = [each if isinstance(each, list) else [each] for each in (value or [] for value in values)]
    if column == "title":
        labels = [[value] if value is not None else [] for value in values]
    plain = Groups.from_labels([[label for label in row if label is not None] for row in labels])
    found = rules.groups(column)
    assert found.offsets.tolist() == plain.offsets.tolist()
    assert found.num_groups == plain.num_groups
    # The same but for the numbers that the groups have.
    assert len(set(zip(found.ids.tolist(), plain.ids.tolist(), strict=True))) == plain.num_groups
    assert rules.groups(column) is found


def test_an_empty_table_has_no_groups() -> None:
    for column in ("categories", "title"):
        found = ColumnGroups.of(ITEMS.clear()[column]).groups
        assert (found.offsets.tolist(), found.num_groups) == ([0], 0)


def _titled(title: str) -> Eq:
    return Eq(eq=Equality(column="title", value=title))


def test_a_filter_is_looked_up_once_and_kept_while_it_is_asked_for(
    rules: CatalogRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rules.permitted(_titled("T"))
    assert first.tolist() == [True, False, True, False, False]
    assert rules.has_ready([_titled("T")], ["categories"])
    assert not rules.has_ready([_titled("U")], [])
    assert not rules.has_ready([], ["title"])
    monkeypatch.setattr(catalog_rules, "_LEAST_CACHED", 3)
    monkeypatch.setattr(catalog_rules, "_CACHE_BYTES", 0)
    for number in range(5):
        rules.permitted(_titled(f"{number}"))
        assert rules.permitted(_titled("T")) is first
    assert not rules.has_ready([_titled("0")], [])
    assert rules.has_ready([_titled("4"), _titled("T")], [])
    assert catalog_rules.filter_key(_titled("T")) == '{"eq":{"column":"title","value":"T"}}'


def test_what_is_allowed_after_a_removal_is_made_once(rules: CatalogRules) -> None:
    assert rules.allowed([], None) is None
    assert rules.allowed([], _titled("T")) is rules.permitted(_titled("T"))
    listed = np.array([False, True, True, True, True])
    newer = rules.over(Catalog(frame=ITEMS), ITEMS.clear(), np.zeros(0, dtype=np.int64), listed, None)
    assert newer.allowed([], None) is listed
    both = newer.allowed(["y", "z"], _titled("T"))
    assert both is not None
    assert both.tolist() == [False, False, True, False, False]
    assert not both.flags.writeable
    assert newer.allowed(["z", "y"], _titled("T")) is both
    assert newer.allowed(["y"], None).tolist() == [False, False, True, False, False]
    with pytest.raises(RuleError, match="no item has the category 'x'"):
        newer.allowed(["x"], _titled("T"))


def test_a_newer_version_has_the_filters_ready_that_were_asked_for_last(rules: CatalogRules) -> None:
    for number in range(3 * catalog_rules._UPDATED):
        rules.permitted(_titled(f"{number}"))
    rows, at = ITEMS[:1].with_columns(title=pl.lit("95")), np.array([0])
    newer = rules.over(Catalog(frame=pl.concat([rows, ITEMS[1:]])), rows, at, None, None)
    assert [newer.has_ready([_titled(f"{number}")], []) for number in (0, 63, 64, 95)] == [False, False, True, True]
    assert newer.permitted(_titled("95")).tolist() == [True, False, False, False, False]
    assert rules.has_ready([_titled("0")], [])


def test_long_filters_take_the_room_of_many(rules: CatalogRules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_rules, "_LEAST_CACHED", 1)
    monkeypatch.setattr(catalog_rules, "_CACHE_BYTES", 2800)
    for title in ("U", "T"):
        rules.permitted(_titled(title))
    assert rules.has_ready([_titled("U"), _titled("T")], [])
    rules.permitted(_titled("t" * 256))
    assert not rules.has_ready([_titled("U")], [])
    assert rules.has_ready([_titled("T"), _titled("t" * 256)], [])


def test_what_is_not_in_the_catalogue_is_named(rules: CatalogRules) -> None:
    with pytest.raises(RuleError, match="no item has the category 'w'") as caught:
        rules.in_categories(["x", "w"])
    assert caught.value.place == ("categories",)
    assert rules.in_categories(["x", "z"]).tolist() == [True, False, False, False, True]
    assert rules.categories == [("y", 2), ("x", 1), ("z", 1)] or rules.categories[0][0] in ("x", "y")


@pytest.mark.parametrize("is_looked_at", [False, True])
@pytest.mark.parametrize("column", ["categories", "title"])
def test_groups_after_changes_are_those_that_are_made_anew(column: str, is_looked_at: bool) -> None:
    rows = ITEMS[[1, 3]].with_columns(
        title=pl.Series([None, "V"]), categories=pl.Series([["w", "x", "w"], []], dtype=pl.List(pl.String))
    )
    last = rows[:1].with_columns(title=pl.lit("T"), categories=pl.Series([["v"]], dtype=pl.List(pl.String)))
    whole = pl.concat([ITEMS[:1], last, ITEMS[2:], rows[1:], last])
    before = ColumnGroups.of(ITEMS[column])
    grown, anew = before.with_rows(rows[column], np.array([1, 5])), ColumnGroups.of(whole[column])
    assert before.is_ready
    assert not grown.is_ready
    if is_looked_at:
        assert grown.groups.num_items == 6
        assert grown.is_ready
    grown = grown.with_rows(pl.concat([last, last])[column], np.array([1, 6]))
    for name in (*anew.numbers, "nowhere"):
        assert grown.items_of(name).tolist() == anew.items_of(name).tolist()
    assert grown.groups.offsets.tolist() == anew.groups.offsets.tolist()
    names = {number: name for name, number in grown.numbers.items()}
    expected = {number: name for name, number in anew.numbers.items()}
    assert [names[group] for group in grown.groups.ids] == [expected[group] for group in anew.groups.ids]
    for among in (None, np.arange(7) % 2 == 0):
        assert grown.sizes(among) == anew.sizes(among)
    assert before.numbers.keys() == ColumnGroups.of(ITEMS[column]).numbers.keys()
