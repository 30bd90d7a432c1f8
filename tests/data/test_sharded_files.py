"""Tables of many files, here and behind URLs, and large files that are read piece by piece."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

from recsys.data import DataConfig, Dataset, fingerprints, load_dataset, resolve, tables
from recsys.errors import ConfigError, DataError
from recsys.files import sha256_file

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", None, "C", "D"], "tags": [["x"], [], ["y"], []]})
EVENTS = pl.DataFrame(
    {
        "user_id": ["v", "u", "v", "w", "u", "v"],
        "item_id": ["a", "b", "c", "a", "d", "b"],
        "timestamp": [5, 3, 4, 1, 2, 6],
        "event_type": ["view", "buy", "view", "view", "buy", "view"],
    }
)
SHARDED = {"items": "items/*.parquet", "interactions": "log"}


def write_shards(folder: Path) -> Path:
    for name, frame, cuts in (("items", ITEMS, [0, 1, 4]), ("log", EVENTS, [0, 2, 5, 6])):
        (folder / name).mkdir(parents=True)
        for number, (begin, end) in enumerate(pairwise(cuts)):
            frame[begin:end].write_parquet(folder / name / f"part-{number}.parquet")
    for name in ("_SUCCESS", "_all.parquet", "._part-0.parquet"):
        (folder / "log" / name).touch()
    # What a job of Spark that failed leaves.
    (folder / "log" / "_temporary" / "0").mkdir(parents=True)
    EVENTS.write_parquet(folder / "log" / "_temporary" / "0" / "part-0.parquet")
    return folder


def load(path: Path | str, **settings: Any) -> Dataset:
    return load_dataset(DataConfig.model_validate({"source": "files", "path": path, **settings}))


def assert_same(found: Dataset, wanted: Dataset) -> None:
    assert found.catalog.frame.equals(wanted.catalog.frame)
    assert found.interactions.frame.equals(wanted.interactions.frame)
    assert found.interactions.user_ids == wanted.interactions.user_ids


@pytest.fixture
def whole(tmp_path: Path) -> Dataset:
    ITEMS.write_parquet(tmp_path / "items.parquet")
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    return load(tmp_path)


@pytest.fixture
def store() -> Iterator[Any]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    "interactions", ["log", "log/*.parquet", "*/part-[0-9].parq*", "log/**/*.parquet", "ABSOLUTE/log"]
)
def test_many_files_are_one_table(tmp_path: Path, whole: Dataset, interactions: str) -> None:
    folder = write_shards(tmp_path / "sharded")
    interactions = interactions.replace("ABSOLUTE", str(folder))
    if interactions.startswith("*"):
        (folder / "items").rename(tmp_path / "items")
        assert_same(load(folder, items="../items", interactions=interactions), whole)
    else:
        assert_same(load(folder, items="items/*.parquet", interactions=interactions), whole)


def test_a_url_is_read_as_a_folder_is(tmp_path: Path, whole: Dataset, store: Any) -> None:
    store.put(str(write_shards(tmp_path / "sharded")), "/shop", recursive=True)
    assert_same(load("memory://shop", **SHARDED), whole)
    store.put(f"{tmp_path}/items.parquet", "/plain/items.parquet")
    store.put(f"{tmp_path}/interactions.parquet", "/plain/interactions.parquet")
    dataset = load_dataset(resolve("memory://plain/"))
    assert dataset.name == "plain"
    assert_same(dataset, whole)


def test_files_here_count_by_their_content(tmp_path: Path, whole: Dataset) -> None:
    folder = write_shards(tmp_path / "sharded")
    config = DataConfig(source="files", path=folder, **SHARDED)
    found = fingerprints(config)
    assert list(found) == [
        *(f"items/part-{number}.parquet" for number in range(2)),
        *(f"log/part-{number}.parquet" for number in range(3)),
    ]
    assert found["log/part-1.parquet"] == sha256_file(folder / "log" / "part-1.parquet")
    assert set(fingerprints(DataConfig(source="files", path=tmp_path))) == {"items.parquet", "interactions.parquet"}
    below = DataConfig(
        source="files", path=tmp_path.parent, items=f"{tmp_path.name}/items.parquet", interactions="x.csv"
    )
    (tmp_path.parent / "x.csv").touch()
    assert set(fingerprints(below)) == {"items.parquet", "x.csv"}
    (folder / "log" / "part-1.parquet").unlink()
    assert set(found) - set(fingerprints(config)) == {"log/part-1.parquet"}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("items", "log"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.csv").write_text(name)
    config = DataConfig(source="files", path=tmp_path, items="items/all.csv", interactions="log/all.csv")
    assert set(fingerprints(config)) == {"items/all.csv", "log/all.csv"}


def test_files_of_a_store_count_by_what_it_says_of_them(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the store of http:// does, whose files count as static.
    monkeypatch.setattr(type(store), "ukey", lambda self, path: path)
    store.pipe({"/shop/items.parquet": b"1", "/shop/interactions.parquet": b"2"})
    config = DataConfig(source="files", path="memory://shop")
    before = fingerprints(config)
    assert fingerprints(config) == before
    assert set(before) == {"items.parquet", "interactions.parquet"}
    store.pipe("/shop/interactions.parquet", b"33")
    assert {name for name, value in fingerprints(config).items() if value != before[name]} == {"interactions.parquet"}


def test_a_glob_may_name_what_is_hidden(tmp_path: Path, whole: Dataset, store: Any) -> None:
    store.put(str(write_shards(tmp_path / "sharded")), "/shop", recursive=True)
    for path in (tmp_path / "sharded", "memory://shop"):
        assert_same(load(path, items="items", interactions="log/_temporary/**/*.parquet"), whole)
        assert_same(load(path, items="items", interactions="log/**/*.parquet"), whole)


def test_a_folder_of_other_files_and_a_glob_that_is_none_say_what_to_write(tmp_path: Path, store: Any) -> None:
    (tmp_path / "log" / "day=1").mkdir(parents=True)
    for place in (tmp_path / "log" / "0.csv", tmp_path / "log" / "day=1" / "0.parquet"):
        place.touch()
    store.put(str(tmp_path / "log"), "/shop/log", recursive=True)
    for path in (tmp_path, "memory://shop"):
        with pytest.raises(DataError, match=r"the folder .*/log has no .parquet files; .* glob \(log/\*\.csv, "):
            fingerprints(DataConfig(source="files", path=path, interactions="log"))
    with pytest.raises(ConfigError, match=r"^data.items or data.interactions: '\*\*.parquet' is no glob: "):
        load(tmp_path, items="**.parquet")


def test_columns_may_stand_in_another_order_in_each_file(tmp_path: Path, whole: Dataset) -> None:
    folder = write_shards(tmp_path / "sharded")
    for number, (begin, end) in enumerate([(0, 1), (1, 4)]):
        part = ITEMS[begin:end].with_columns(colour=pl.lit("red"))
        columns = ["colour", *ITEMS.columns] if number else [*ITEMS.columns, "colour"]
        part.select(columns).write_parquet(folder / "items" / f"part-{number}.parquet")
    found = load(folder, **SHARDED)
    assert found.catalog.frame.drop("colour").equals(whole.catalog.frame)


def test_files_that_are_missing_are_named(tmp_path: Path, store: Any) -> None:
    for path in (tmp_path, "memory://shop"):
        with pytest.raises(DataError, match=r"data.path: no .*items/\*\.parquet, .*log; check the path"):
            fingerprints(DataConfig(source="files", path=path, **SHARDED))
    for items in ("items/*.parquet", "/items/*.parquet"):
        with pytest.raises(DataError, match=r"items/\*\.parquet: no such file"):
            load(tmp_path, **{**SHARDED, "items": items})
    with pytest.raises(DataError, match=r"data.path: /shop/items/\*\.parquet cannot be read: FileNotFoundError: "):
        load("memory://shop", **SHARDED)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://shop/log", r"pip install 'recsys\[s3\]'$"),
        ("gs://shop/log", r"pip install 'recsys\[gcs\]'$"),
        ("nowhere://shop", "Protocol not known: nowhere"),
    ],
)
def test_a_url_that_nothing_reads_says_what_to_install(monkeypatch: pytest.MonkeyPatch, url: str, message: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=message):
        load(url)


def test_a_url_needs_tables_of_ones_own() -> None:
    with pytest.raises(ValueError, match=r"path: a URL \(s3://shop\) needs source: files"):
        DataConfig(source="movielens", path="s3://shop")


def test_files_without_rows_are_skipped_and_other_columns_refused(tmp_path: Path, whole: Dataset) -> None:
    folder = write_shards(tmp_path / "sharded")
    EVENTS[:0].write_parquet(folder / "log" / "part-0a.parquet")
    assert_same(load(folder, **SHARDED), whole)
    EVENTS[:1].drop("timestamp").write_parquet(folder / "log" / "part-3.parquet")
    with pytest.raises(DataError, match=r"log/part-3.parquet: the columns are user_id String, .*before it .*timestamp"):
        load(folder, **SHARDED)
    for path in (folder / "log").glob("*.parquet"):
        EVENTS[:0].write_parquet(path)
    with pytest.raises(DataError, match=r"log/part-0.parquet: the table has no rows"):
        load(folder, **SHARDED)


def test_bad_rows_are_counted_in_their_file(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "sharded")
    bad = EVENTS[2:5].with_columns(item_id=pl.Series(["c", None, "d"]))
    bad.write_parquet(folder / "log" / "part-1.parquet")
    message = r"^log/part-1.parquet: column 'item_id' has no value in 1 of 3 rows, e.g. row 2: None$"
    with pytest.raises(DataError, match=message):
        load(folder, **SHARDED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        # The first column that is wrong anywhere, with all its rows.
        (
            {"timestamp": [None, 1, 2, 3, 4, 5], "item_id": ["a", "b", "c", "", "a", " "]},
            "'item_id' is blank in 2 of 6",
        ),
        # Texts are numbers or dates as a whole.
        (
            {"timestamp": ["2020-01-01"] * 3 + ["7"] * 3},
            "'timestamp' is not a number in 3 of 6 rows, e.g. row 1: '2020",
        ),
        ({"timestamp": ["2020-01-01"] * 6}, None),
        ({"timestamp": ["7.5"] * 6}, None),
        (
            {"user_id": [1.0, 2.0, 1.0, 3.0, 2.0, 1.5]},
            "'user_id' is not a whole number in 1 of 6 rows, e.g. row 6: 1.5",
        ),
    ],
)
def test_a_large_file_reads_piece_by_piece_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, list[Any]], message: str | None
) -> None:
    ITEMS.write_parquet(tmp_path / "items.parquet", row_group_size=1)
    EVENTS.with_columns(**{name: pl.Series(values) for name, values in change.items()}).write_parquet(
        tmp_path / "interactions.parquet", row_group_size=1
    )
    if message is None:
        at_once = load(tmp_path)
    monkeypatch.setattr(tables, "_PIECE_ROWS", 2)
    with tables.opened(tmp_path / "interactions.parquet", tmp_path / "scratch") as table:
        assert len(table.stretches) == 3
    if message is None:
        assert_same(load(tmp_path), at_once)
        return
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log[1].jsonl", "log.ndjson.gz"])
def test_text_is_read_piece_by_piece_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Dataset, name: str
) -> None:
    write = EVENTS.write_csv if ".csv" in name else EVENTS.write_ndjson
    text = io.BytesIO()
    write(text)
    content = gzip.compress(text.getvalue()) if name.endswith(".gz") else text.getvalue()
    (tmp_path / name).write_bytes(content)

    def at_once(_: Path) -> bytes:
        raise AssertionError("holds all of the file")

    monkeypatch.setattr(tables, "_content", at_once)
    found = load_dataset(
        DataConfig.model_validate({"source": "files", "path": tmp_path, "interactions": name}),
        scratch=tmp_path / "scratch",
    )
    assert_same(found, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "interactions.parquet", "items.parquet"])


@pytest.mark.parametrize("context", [{}, {"a": [{}]}, 2**70])
def test_json_that_parquet_cannot_hold_is_read_all_the_same(tmp_path: Path, whole: Dataset, context: object) -> None:
    lines = [json.dumps({**row, "context": context}) for row in EVENTS.to_dicts()]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert_same(load(tmp_path, interactions="log.jsonl"), whole)


@pytest.mark.parametrize(("name", "content"), [("log.csv", b" \n \n"), ("log.jsonl.gz", gzip.compress(b"\n\n"))])
def test_a_file_of_blanks_is_empty(tmp_path: Path, whole: Dataset, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        load(tmp_path, interactions=name)


def test_a_scratch_directory_that_has_no_room_is_named(
    tmp_path: Path, whole: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    EVENTS.write_csv(tmp_path / "log.csv")
    (tmp_path / "file").touch()
    message = "a table could not be written there: .*; make room on that disk"
    with (
        pytest.raises(DataError, match=f"file/scratch: {message}"),
        tables.opened(tmp_path / "log.csv", tmp_path / "file" / "scratch"),
    ):
        pass
    # What a full disk does to Polars, in a name that it cannot write to.
    (tmp_path / "scratch" / "table.parquet").mkdir(parents=True)
    monkeypatch.setattr(tables, "_LEAST_FREE", 1 << 60)
    with (
        pytest.raises(DataError, match=f"scratch: {message}"),
        tables.opened(tmp_path / "log.csv", tmp_path / "scratch"),
    ):
        pass


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path, whole: Dataset) -> None:
    name = "x" * 248 + ".csv.gz"
    text = io.BytesIO()
    EVENTS.write_csv(text)
    (tmp_path / name).write_bytes(gzip.compress(text.getvalue()))
    assert_same(load(tmp_path, interactions=name), whole)
