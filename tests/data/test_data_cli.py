"""`recsys data` and the facts it prints."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from recsys.cli.data import app
from recsys.data import describe, load_dataset, resolve
from recsys.errors import ConfigError, DataError


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    items = {"item_id": ["a", "b", "c", "d"], "title": ["A", None, "C", "D"], "tags": [["x"], [], [], []]}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    events = {
        "user_id": ["u", "u", "u", "u", "v"],
        "item_id": ["a", "b", "a", "c", "a"],
        "timestamp": [0, 60, 60, 86400, 5],
        "rating": [1.0, 2.0, 2.0, None, 5.0],
        "event_type": ["view", "buy", "view", "view", "view"],
    }
    pl.DataFrame(events).write_parquet(folder / "interactions.parquet")
    return folder


def test_facts_of_a_small_log(shop: Path) -> None:
    facts = describe(load_dataset(resolve(str(shop))))
    lengths = facts.pop("history_length")
    assert facts == {
        "name": "shop",
        "users": 2,
        "items": 4,
        "interactions": 5,
        "density": 5 / 8,
        "items_without_interactions": 1,
        "repeat_share": pytest.approx(0.2),
        "tie_share": pytest.approx(0.4),
        "tie_order": "source",
        "text_coverage": {"title": 0.75, "categories": 0.0, "tags": 0.25},
        "event_types": {"buy": 1, "view": 4},
        "ratings": {"1.0": 1, "2.0": 2, "5.0": 1},
        "time_range": {"first": "1970-01-01T00:00:00+00:00", "last": "1970-01-02T00:00:00+00:00"},
    }
    assert (lengths["mean"], lengths["p0"], lengths["p50"], lengths["p100"]) == (2.5, 1.0, 2.5, 4.0)


def test_unknown_facts_are_null(shop: Path) -> None:
    events = pl.read_parquet(shop / "interactions.parquet").select("user_id", "item_id")
    events.write_parquet(shop / "interactions.parquet")
    facts = describe(load_dataset(resolve(str(shop))))
    assert (facts["tie_share"], facts["time_range"], facts["ratings"]) == (None, None, None)
    assert facts["tie_order"] == "given positions"


def test_describe_json_prints_one_document_and_nothing_else(shop: Path) -> None:
    result = CliRunner().invoke(app, ["describe", str(shop), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(json.dumps(describe(load_dataset(resolve(str(shop))))))


def test_describe_prints_a_table(shop: Path) -> None:
    result = CliRunner().invoke(app, ["describe", str(shop)])
    assert result.exit_code == 0
    for fact in ("shop", "62.50%", "text coverage: title", "75.00%", "1970-01-02"):
        assert fact in result.stdout


def test_list_prints_a_name_a_line() -> None:
    names = CliRunner().invoke(app, ["list"]).stdout.splitlines()
    assert names[:3] == ["ml-100k", "ml-1m", "ml-latest-small"]
    assert {"amazon-2014/Beauty", "amazon-2018/All_Beauty", "amazon-2023/All_Beauty"} <= set(names)
    assert len(names) == len(set(names)) == 3 + 24 + 29 + 33


def test_import_writes_a_folder_that_loads_again(shop: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", str(shop), str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "2 users, 4 items, 5 interactions" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "interactions.parquet",
        "items.parquet",
    ]
    again = describe(load_dataset(resolve(str(tmp_path / "out"))))
    assert again == {**describe(load_dataset(resolve(str(shop)))), "name": "out"}


def test_bad_input_writes_nothing(shop: Path, tmp_path: Path) -> None:
    items = pl.read_parquet(shop / "items.parquet")
    items.head(1).write_parquet(shop / "items.parquet")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["import", str(shop), str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_name_is_an_error_with_the_known_ones() -> None:
    result = CliRunner().invoke(app, ["describe", "ml-100"])
    assert isinstance(result.exception, ConfigError)
    assert "ml-100k, ml-1m, ml-latest-small, amazon-YEAR/CATEGORY" in str(result.exception)
