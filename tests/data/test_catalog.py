from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys.data import Catalog
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
