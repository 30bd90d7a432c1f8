from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data import Catalog
from recsys.data.columns import RowsByText
from recsys.errors import ArtifactError, DataError


def frame(ids: list[str | None], **columns: object) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": ids, "title": [None] * len(ids), "categories": [["a"]] * len(ids), **columns},
        schema_overrides={"title": pl.String},
    )


def test_row_numbers_are_the_dense_indices() -> None:
    catalog = Catalog(frame=frame(["x", "y", "z"]))
    assert catalog.num_items == len(catalog) == 3
    assert catalog.item_ids == ["x", "y", "z"]
    assert catalog.titles == [None, None, None]
    assert catalog.index_of(["z", "nope", "x"]).tolist() == [2, -1, 0]
    many = catalog.find(pl.Series(["z", "nope", "x", "z"]))
    assert (many.tolist(), many.dtype) == ([2, -1, 0, 2], np.int64)
    assert catalog.find(pl.Series([], dtype=pl.String)).tolist() == []


def test_saved_catalogue_loads_unchanged(tmp_path: Path) -> None:
    catalog = Catalog(frame=frame(["x", "y"], brand=["b", None], tags=[["t", "u"], []]))
    catalog.save(tmp_path / "catalog.parquet")
    assert Catalog.load(tmp_path / "catalog.parquet").frame.equals(catalog.frame)
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.parquet"]


def test_duplicate_item_ids_are_counted_with_examples() -> None:
    with pytest.raises(DataError, match=r"4 of 5 rows share an item_id with another row, e.g. 'x', 'y'"):
        Catalog(frame=frame(["x", "y", "x", "z", "y"]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame(["x"]).drop("categories"), "column 'categories' must be List"),
        (frame(["x"], price=[1.5]), "column 'price' must be text or a list of text, found Float64"),
        (frame(["x", None]), "1 of 2 items have no item_id"),
    ],
)
def test_broken_schema_is_refused(table: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Catalog(frame=table)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 not really")
    for path in (tmp_path / "missing.parquet", damaged):
        with pytest.raises(ArtifactError, match=path.name):
            Catalog.load(path)


def test_rows_are_replaced_and_appended_and_the_catalogue_before_stays_as_it_is() -> None:
    first = Catalog(frame=frame(["x", "y", "z"], brand=["b", "c", None]))
    rows = frame(["y", "new"], brand=["c", "d"]).with_columns(title=pl.Series(["Y", "New"]))
    second = first.with_rows(rows, np.array([1, 3]))
    third = second.with_rows(rows[1:].with_columns(brand=pl.lit("e")), np.array([3]))
    whole = Catalog(frame=pl.concat([first.frame[:1], rows[:1], first.frame[2:], rows[1:]]))
    assert second.frame.equals(whole.frame)
    assert (list(second.item_ids), list(second.titles)) == (whole.item_ids, whole.titles)
    assert list(third.titles) == [None, "Y", None, "New"]
    assert third.titles[-1] == "New"
    assert third.titles[1:3] == ["Y", None]
    assert third.frame["brand"].to_list() == ["b", "c", None, "e"]
    for catalog, found in ((first, [-1, 1]), (second, [3, 1]), (third, [3, 1])):
        assert catalog.index_of(["new", "y"]).tolist() == found
    assert first.titles == [None, None, None]
    assert third.shares(second, ["title", "categories"])
    assert not third.shares(second, ["brand"])
    assert not second.shares(first, ["brand"])
    assert not first.shares(Catalog(frame=first.frame), ["title"])


def test_many_changes_do_not_leave_a_table_in_ever_more_pieces() -> None:
    catalog = Catalog(frame=frame([str(number) for number in range(300)]))
    for number in range(0, 300, 3):
        catalog = catalog.with_rows(frame([str(number)]).with_columns(title=pl.lit("t")), np.array([number]))
    assert catalog.frame.n_chunks() <= 65
    assert catalog.frame["title"].to_list() == list(catalog.titles) == ["t", None, None] * 100


@pytest.mark.parametrize(
    ("ids", "at", "message"),
    [
        (["y"], [0], "the id of the item it replaces"),
        (["y", "x"], [1, 0], "in the order of their indices"),
        (["new"], [4], "without gaps"),
        (["x"], [2], "an id that is there already"),
        (["new", "new"], [2, 3], "an id that is there already"),
    ],
)
def test_rows_that_do_not_fit_are_refused(ids: list[str | None], at: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Catalog(frame=frame(["x", "y"])).with_rows(frame(ids), np.array(at))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every catalogue is one that keeps no lists."""
    monkeypatch.setattr("recsys.data.catalog._LISTED_UP_TO", 0)


def test_a_large_catalogue_finds_its_items_without_lists_of_them(large: None) -> None:
    names = [str(number) for number in np.random.default_rng(0).permutation(3000)]
    catalog = Catalog(frame=pl.concat([frame(names[:1000]), frame(names[1000:])]).with_columns(title=pl.lit("T")))
    assert catalog.index_of([*names[::-1], "nowhere", ""]).tolist() == [*range(2999, -1, -1), -1, -1]
    assert catalog.index_of([]).tolist() == []
    assert list(catalog.item_ids) == names
    assert (catalog.item_ids[2999], catalog.item_ids[-1], catalog.item_ids[1:3]) == (names[-1], names[-1], names[1:3])
    assert set(catalog.titles) == {"T"}
    grown = catalog.with_rows(frame(["new"]).with_columns(title=pl.lit("N")), np.array([3000]))
    assert grown.index_of(["new", "nowhere", names[7]]).tolist() == [3000, -1, 7]
    assert (grown.item_ids[3000], grown.titles[3000], len(grown.titles)) == ("new", "N", 3001)
    assert Catalog(frame=catalog.frame.clear()).index_of(["x"]).tolist() == [-1]


def test_texts_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"a": 1, "b": 2, "c": 1, "d": 1, "other": 1, "z": 9}
    monkeypatch.setattr(pl.Series, "hash", lambda self: pl.Series([hashes[text] for text in self], dtype=pl.UInt64))
    rows = RowsByText(pl.Series(["a", "b", "c", "d"]))
    assert rows.find(["d", "a", "c", "b", "other", "z", "a"]).tolist() == [3, 0, 2, 1, -1, -1, 0]
