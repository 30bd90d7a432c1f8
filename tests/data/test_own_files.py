"""Own tables in every format, and each way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.data import DataConfig, Dataset, fingerprints, load_dataset, resolve, write_import_folder
from recsys.errors import ConfigError, DataError

ITEMS = {
    "item_id": ["001", "002", "003"],
    "title": ["One", None, " "],
    "categories": [["a", "b"], [], ["c"]],
    "brand": ["B", "C", None],
}
EVENTS: dict[str, list[Any]] = {
    "user_id": ["u", "u", "v", "u"],
    "item_id": ["001", "003", "002", "002"],
    "timestamp": [300, 100, 200, 200],
}


def write_folder(folder: Path, items: dict[str, Any] = ITEMS, events: dict[str, Any] = EVENTS) -> Path:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame(events, strict=False).write_parquet(folder / "interactions.parquet")
    return folder


def load(folder: Path, **settings: Any) -> Dataset:
    return load_dataset(DataConfig.model_validate({"source": "files", "path": folder, **settings}))


def histories(dataset: Dataset) -> dict[str, list[str]]:
    ids = dataset.catalog.item_ids
    sequences = dataset.interactions.sequences()
    pairs = zip(dataset.interactions.user_ids, sequences, strict=True)
    return {user: [ids[item] for item in items] for user, items in pairs}


EXPECTED = {"u": ["003", "002", "001"], "v": ["002"]}


def test_import_folder_needs_no_column_map(tmp_path: Path) -> None:
    dataset = load(write_folder(tmp_path / "shop"))
    assert histories(dataset) == EXPECTED
    assert dataset.name == "shop"
    assert dataset.catalog.titles == ["One", None, None]
    assert dataset.catalog.frame["categories"].to_list() == [["a", "b"], [], ["c"]]
    assert dataset.catalog.frame.columns == ["item_id", "title", "categories", "brand"]


def test_path_replaces_the_download_of_any_source(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shop")
    for source in ({"source": "amazon", "name": "amazon-2014/Beauty"}, {"source": "movielens"}):
        config = DataConfig.model_validate({**source, "path": folder})
        assert histories(load_dataset(config)) == EXPECTED
        assert list(fingerprints(config)) == ["interactions.parquet", "items.parquet"]


def test_catalogue_of_nothing_but_categories_works(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shop", {name: ITEMS[name] for name in ("item_id", "categories")})
    assert load(folder).catalog.titles == [None, None, None]


def test_catalogue_of_nothing_but_ids_works(tmp_path: Path) -> None:
    dataset = load(write_folder(tmp_path / "shop", {"item_id": ITEMS["item_id"]}))
    assert dataset.catalog.frame["categories"].to_list() == [[], [], []]


@pytest.mark.parametrize("compressed", [False, True])
def test_csv_and_json_lines_load_through_a_column_map(tmp_path: Path, compressed: bool) -> None:
    items = "sku,name,path,price\n001,One,a > b,3\n002,,,4\n003,Three,c,\n"
    lines = [
        {"who": 7, "sku": "001", "at": "1970-01-01T00:05:00Z", "what": "buy", "other": {"nested": [1]}},
        {"who": 7, "sku": "003", "at": "1970-01-01 00:01:40", "what": "view"},
        {"who": 8, "sku": "002", "at": "1970-01-01T01:03:20+01:00", "what": "view"},
    ]
    events = "\n".join(map(json.dumps, lines)) + "\n\n"
    suffix = ".gz" if compressed else ""
    for name, text in (("items.csv", items), ("events.jsonl", events)):
        content = text.encode()
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(content) if compressed else content)
    config = tmp_path / "own.yaml"
    config.write_text(f"""
        run: {{name: something else}}
        data:
          source: files
          path: {tmp_path}
          items: items.csv{suffix}
          interactions: events.jsonl{suffix}
          item_columns: {{item_id: sku, title: name, categories: path}}
          interaction_columns: {{user_id: who, item_id: sku, timestamp: at, event_type: what}}
          category_separator: ">"
    """)
    dataset = load_dataset(resolve(str(config)))
    assert histories(dataset) == {"7": ["003", "001"], "8": ["002"]}
    assert dataset.interactions.frame["timestamp"].to_list() == [100, 300, 200]
    assert dataset.interactions.frame["event_type"].to_list() == ["view", "buy", "view"]
    assert dataset.catalog.frame.to_dict(as_series=False) == {
        "item_id": ["001", "002", "003"],
        "title": ["One", None, "Three"],
        "categories": [["a", "b"], [], ["c"]],
    }
    assert list(fingerprints(resolve(str(config)))) == [
        f"items.csv{suffix}",
        f"events.jsonl{suffix}",
    ]


def test_numbers_become_ids_and_text(tmp_path: Path) -> None:
    items = {"item_id": [1, 2], "price": [1.5, None], "tags": ["x|y", None], "sizes": [[1], [2, 3]]}
    events = {"user_id": [5.0, 6.0], "item_id": [2, 1], "rating": [4, None]}
    dataset = load(write_folder(tmp_path / "shop", items, events))
    assert histories(dataset) == {"5": ["2"], "6": ["1"]}
    assert dataset.catalog.frame.drop("title", "categories").to_dict(as_series=False) == {
        "item_id": ["1", "2"],
        "price": ["1.5", None],
        "tags": [["x", "y"], []],
        "sizes": [["1"], ["2", "3"]],
    }
    assert dataset.interactions.frame["rating"].to_list() == [4.0, None]


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([300_000, 100_999, 200_000, 200_000], "ms"),
        ([300.9, 100.0, 200.0, 200.0], "s"),
        (["300", "100", "200", "200"], "s"),
        ([datetime.fromtimestamp(value, tz=UTC) for value in (300, 100, 200, 200)], "s"),
    ],
)
def test_times_are_understood_in_many_forms(tmp_path: Path, values: list[Any], unit: str) -> None:
    folder = write_folder(tmp_path / "shop", events={**EVENTS, "timestamp": values})
    dataset = load(folder, timestamp_unit=unit)
    assert histories(dataset) == EXPECTED
    assert dataset.interactions.frame["timestamp"].to_list() == [100, 200, 300, 200]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"timestamp": [1.0, float("nan"), 2.0, float("nan")]},
            "'timestamp' is NaN or infinite in 2 of 4 rows, e.g. row 2",
        ),
        ({"timestamp": [1, None, 2, 3]}, "'timestamp' has no value in 1 of 4 rows, e.g. row 2: None"),
        (
            {"timestamp": ["1", "soon", "3", "never"]},
            "'timestamp' is not a number in 2 of 4 rows, e.g. row 2: 'soon', row 4",
        ),
        (
            {"timestamp": ["2020-01-01", "soon", "x", "y"]},
            "neither a number nor an ISO 8601 time in 3 of 4 rows",
        ),
        ({"timestamp": [1600000000000] * 4}, "set timestamp_unit"),
        ({"timestamp": [True] * 4}, "must hold times or numbers, found Boolean"),
        ({"rating": ["5", "good", "", "4"]}, "'rating' is not a number in 1 of 4 rows, e.g. row 2: 'good'"),
        ({"rating": [[1.0]] * 4}, "'rating' must hold numbers, found List"),
        ({"position": [0, 1, None, 2]}, "'position' has no value in 1 of 4 rows"),
        ({"position": [0, 0.5, 1, 2]}, "'position' is not a whole number in 1 of 4 rows, e.g. row 2: 0.5"),
        ({"user_id": ["u", None, "v", " "]}, "'user_id' has no value in 1 of 4 rows"),
        ({"user_id": ["u", "v", "v", " "]}, "'user_id' is blank in 1 of 4 rows, e.g. row 4"),
        (
            {"user_id": [1.5, 2.0, 3.0, 4.0]},
            "'user_id' is not a whole number in 1 of 4 rows, e.g. row 1: 1.5",
        ),
        ({"user_id": [1e19, 2.0, 3.0, 2.0**53]}, "'user_id' has lost digits .* in 2 of 4 rows, e.g. row 1: 1e"),
        ({"timestamp": pl.Series([2**64 - 1, 1, 2, 3], dtype=pl.UInt64)}, "'timestamp' lies beyond .* in 1 of 4 rows"),
        ({"item_id": ["001", "x", "y", "x"]}, "3 of 4 rows name 2 items that are not among the 3"),
    ],
)
def test_bad_columns_of_the_log_are_counted_with_examples(
    tmp_path: Path, change: dict[str, list[Any]], message: str
) -> None:
    folder = write_folder(tmp_path / "shop", events={**EVENTS, **change})
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"sku": ["001"]}, "column 'item_id' .our item_id. is missing among 1 columns .sku."),
        ({"item_id": ["001", "001", "002"]}, "2 of 3 rows share an item_id"),
        (
            {"item_id": ["001"], "title": [["a"]], "categories": [[["a"]]]},
            "'categories' must hold text or lists of text",
        ),
        ({"item_id": ["001"], "size": [{"w": 1}]}, "'size' must hold text, found Struct"),
        ({"item_id": []}, "items.parquet: the table has no rows"),
    ],
)
def test_bad_catalogues_are_refused(tmp_path: Path, items: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_folder(tmp_path / "shop", items))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", "", "items.csv: the file is empty"),
        ("items.csv", "item_id,title\n", "items.csv: the table has no rows"),
        ("items.csv", "item_id,title\n1,a\n2,b,c,d\n", "items.csv: cannot be read as csv: found more fields"),
        (
            "items.jsonl",
            '{"item_id": 1}\n{"item_id":\n[3]\n{"item_id": NaN}\n',
            "3 of 4 lines are malformed, e.g. line 2: ",
        ),
        ("items.parquet", "not parquet", "items.parquet: cannot be read as parquet"),
        ("items.csv.gz", "not gzip", "items.csv.gz: cannot be read as gz"),
        ("items.xlsx", "x", "unknown kind of table"),
        ("other.csv", "x", "missing.csv: no such file"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, items="missing.csv" if name == "other.csv" else name)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("data: {source: files", "malformed YAML"),
        ("- a", "expected keys and values, found list"),
        ("data: {sauce: files}", "unknown key data.sauce; the keys are source, name, path"),
        ("data: {split: {kin: x}}", "unknown key data.split.kin; the keys are kind, valid_fraction"),
        ("data: {min_rating: high}", "data.min_rating: .* valid number.*, found 'high'"),
        ("data: {source: files}", "data: path is required for source: files"),
        (
            "data: {name: ml-20m}",
            "'ml-20m' is no MovieLens set; choose one of ml-100k, ml-1m, ml-latest-small",
        ),
        ("data: {source: amazon, name: Beauty}", "'Beauty' must be amazon-YEAR/CATEGORY"),
        ("data:", "valid dictionary"),
    ],
)
def test_bad_configurations_name_the_key(tmp_path: Path, yaml: str, message: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml)
    with pytest.raises(ConfigError, match=message):
        resolve(str(config))


def test_unknown_names_and_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'ml-2k' is neither a folder"):
        resolve("ml-2k")
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read: No such file"):
        resolve(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="interaction_columns: unknown name 'when'"):
        load(write_folder(tmp_path / "shop"), interaction_columns={"when": "timestamp"})
    with pytest.raises(DataError, match=r"path: .* is no folder"):
        load(tmp_path / "nowhere")


def test_written_import_folder_loads_unchanged(tmp_path: Path) -> None:
    events = {**EVENTS, "rating": [1.0, None, 3.0, 4.0], "event_type": ["view", "buy", "view", "view"]}
    dataset = load(write_folder(tmp_path / "shop", events=events))
    for _ in range(2):  # the second time replaces the first
        write_import_folder(dataset, tmp_path / "out")
    again = load_dataset(resolve(str(tmp_path / "out")))
    assert again.catalog.frame.equals(dataset.catalog.frame)
    assert again.interactions.frame.equals(dataset.interactions.frame)
    assert again.interactions.user_ids == dataset.interactions.user_ids


def test_import_never_replaces_a_folder_with_other_files(tmp_path: Path) -> None:
    dataset = load(write_folder(tmp_path / "shop"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="exists and holds other files"):
        write_import_folder(dataset, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "precious"
