"""A log of slates from a file: what is taken from it, what is left out, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.alignment.builders.click_skip import click_skip_pairs
from recsys.alignment.builders.slate_log import read_slates
from recsys.errors import DataError

INDEX = {"a": 0, "b": 1, "c": 2, "d": 3}
ROW: dict[str, Any] = {
    "slate_id": "s1",
    "user_id": "u",
    "history": ["a"],
    "items": ["b", "c"],
    "outcomes": ["skip", "click"],
}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "slates.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_slates_become_pairs(tmp_path: Path) -> None:
    path = written(tmp_path, {**ROW, "examined": [1.0, 0.5], "propensities": [0.25, 0.125], "created_by": "v1"})
    log = read_slates(path, INDEX)
    (found,) = click_skip_pairs(log.slates)
    assert (found.prompt_items, found.chosen_item, found.rejected_items) == ([0], 2, [1])
    assert (found.weight, found.propensity, found.created_by) == (2.0, 0.125, "v1")
    pl.read_ndjson(path).write_parquet(tmp_path / "slates.parquet")
    assert read_slates(tmp_path / "slates.parquet", INDEX) == log


def test_what_the_evaluation_asks_for_is_not_read(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "slate_id": "after", "history": ["a", "d"]},
        {**ROW, "slate_id": "taken", "items": ["b", "d"]},
        {**ROW, "slate_id": "only shown", "items": ["d", "c"]},
        {**ROW, "slate_id": "another user", "user_id": "v", "history": ["d"]},
        {**ROW, "slate_id": "unknown", "items": ["b", "z"]},
    ]
    log = read_slates(written(tmp_path, *rows), INDEX, {"u": frozenset({INDEX["d"]})})
    assert [slate.slate_id for slate in log.slates] == ["s1", "only shown", "another user"]
    assert log.left_out == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"outcomes": ["skip"]}, "row 1: slate 's1': outcomes must be one a slot"),
        ({"outcomes": ["skip", "gaze"]}, r"row 1: slate 's1': outcomes must be of .*'buy'.* got \['gaze'\]"),
        ({"user_id": None}, "column 'user_id' has no value in 1 of 1 rows"),
        ({"examined": [0.0, 1.0]}, r"row 1: slate 's1': examined must lie in \(0, 1\]"),
        ({"second_page_view": "perhaps"}, "the columns are to be"),
    ],
)
def test_a_bad_log_is_named(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        read_slates(written(tmp_path, {**ROW, **changes}), INDEX)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "history"}
    with pytest.raises(DataError, match="no column 'history'; a log of slates has slate_id, user_id, history"):
        read_slates(written(tmp_path, row), INDEX)
