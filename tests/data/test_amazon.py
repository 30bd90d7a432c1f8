"""The three Amazon releases, in small files of the true formats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recsys.data import DataConfig, Dataset, load_dataset
from recsys.data.sources import amazon
from recsys.errors import ConfigError, DataError
from recsys.files import sha256_file

REVIEWS_2014 = [
    ("A1", "B002", 5.0, 1400000000),
    ("A1", "B001", 3.0, 1300000000),
    ("A2", "B003", 4.0, 1350000000),
    ("A2", "B001", 1.0, 1350000000),
]


def write(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def reviews(rows: list[tuple[str, str, float, int]]) -> list[str]:
    extra = {
        "reviewerName": "x",
        "helpful": [0, 1],
        "reviewText": 'says "asin": "B009"',
        "style": {"Size:": " 5"},
    }
    return [
        json.dumps({"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time, **extra})
        for user, item, rating, time in rows
    ]


def folder_2014(folder: Path, metadata: list[str] | None = None) -> Path:
    write(folder / "reviews_Beauty_5.json.gz", reviews(REVIEWS_2014))
    write(
        folder / "meta_Beauty.json.gz",
        metadata
        or [
            "{'asin': 'B009', 'title': 'Never reviewed'}",
            # Python literals as they are: mixed quotes, nested category paths, entities, no title.
            "{'asin': 'B002', 'description': \"It's a &quot;balm&quot;\", 'title': 'Lip Balm', 'price': 4.5, "
            "'brand': \"Burt's\", 'salesRank': {'Beauty': 1}, 'related': {'also_bought': ['B001']}, "
            "'categories': [['Beauty', 'Skin'], ['Beauty', 'Lips']]}",
            "{'asin': 'B001', 'categories': [['Beauty', 'Hair Care']], 'brand': ''}",
        ],
    )
    return folder


def load(folder: Path, name: str, **settings: Any) -> Dataset:
    values = {"source": "amazon", "name": name, "path": folder, **settings}
    return load_dataset(DataConfig.model_validate(values))


def test_2014_reads_python_literals(tmp_path: Path) -> None:
    dataset = load(folder_2014(tmp_path), "amazon-2014/Beauty")
    assert dataset.catalog.frame.to_dict(as_series=False) == {
        "item_id": ["B001", "B002", "B003"],
        "title": [None, "Lip Balm", None],
        "categories": [["Beauty", "Hair Care"], ["Beauty", "Skin", "Lips"], []],
        "brand": [None, "Burt's", None],
        "description": [None, 'It\'s a "balm"', None],
    }
    assert dataset.name == "amazon-2014/Beauty"
    assert dataset.interactions.user_ids == ["A1", "A2"]
    assert dataset.interactions.frame["rating"].to_list() == [3.0, 5.0, 4.0, 1.0]
    # A tie keeps the file's order unless asked otherwise.
    assert [items.tolist() for items in dataset.interactions.sequences()] == [[0, 1], [2, 0]]
    by_item = load(tmp_path, "amazon-2014/Beauty", tie_order="item_id").interactions
    assert [items.tolist() for items in by_item.sequences()] == [[0, 1], [0, 2]]


def test_2018_reads_json_and_cleans_titles(tmp_path: Path) -> None:
    write(
        tmp_path / "Software_5.json.gz",
        reviews([("A1", "B001", 5.0, 1500000000), ("A1", "B002", 4.0, 1500000001)]),
    )
    metadata = [
        {
            "category": ["Software", "Games &amp; More"],
            "description": ["First.<br>", "Second."],
            "title": "A <b>bold</b>  title",
            "brand": "by\n\n",
            "feature": ["fast", "small"],
            "also_buy": ["B002"],
            "asin": "B001",
        },
        {
            "category": [],
            "description": "",
            "title": "var aPageStart = (new Date()).getTime();",
            "asin": "B002",
        },
        {"category": ["again"], "title": "a second record of the same item", "asin": "B001"},
    ]
    write(tmp_path / "meta_Software.json.gz", [json.dumps(record) for record in metadata])
    dataset = load(tmp_path, "amazon-2018/Software")
    assert dataset.catalog.frame.to_dict(as_series=False) == {
        "item_id": ["B001", "B002"],
        "title": ["A bold title", None],
        "categories": [["Software", "Games & More"], []],
        "brand": ["by", None],
        "description": ["First. Second.", None],
        "features": ["fast small", None],
    }


def test_2023_reads_parent_items_and_milliseconds(tmp_path: Path) -> None:
    rest = {
        "title": "t",
        "text": "x",
        "images": [],
        "user_id": "AE1",
        "helpful_vote": 0,
        "verified_purchase": True,
    }
    rows = [
        {"rating": 5.0, "asin": "B00X", "parent_asin": "B001", "timestamp": 1588687728923, **rest},
        {"rating": 4.0, "asin": "B00Y", "parent_asin": "B002", "timestamp": 1588687728001, **rest},
    ]
    metadata = {
        "main_category": "All Beauty",
        "title": "Brush",
        "features": ["soft"],
        "description": [],
        "price": None,
        "store": "Yes To",
        "categories": [],
        "details": {"Brand": "Yes To", "UPC": "1"},
        "parent_asin": "B001",
        "bought_together": None,
    }
    write(tmp_path / "All_Beauty.jsonl.gz", [json.dumps(row) for row in rows])
    write(tmp_path / "meta_All_Beauty.jsonl.gz", [json.dumps(metadata)])
    dataset = load(tmp_path, "amazon-2023/All_Beauty")
    assert dataset.interactions.frame["timestamp"].to_list() == [1588687728, 1588687728]
    assert dataset.catalog.frame.to_dict(as_series=False) == {
        "item_id": ["B001", "B002"],
        "title": ["Brush", None],
        "categories": [[], []],
        "brand": ["Yes To", None],
        "features": ["soft", None],
    }


def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(folder_2014(tmp_path), "amazon-2014/Beauty")
    monkeypatch.setattr(amazon, "_CHUNK_BYTES", 1)
    pieces = load(tmp_path, "amazon-2014/Beauty")
    assert pieces.catalog.frame.equals(whole.catalog.frame)
    assert pieces.interactions.frame.equals(whole.interactions.frame)


def test_k_core_shrinks_the_catalogue_unless_all_items_are_wanted(tmp_path: Path) -> None:
    folder_2014(tmp_path)
    core = {"min_item_interactions": 2}
    assert load(tmp_path, "amazon-2014/Beauty", **core).catalog.item_ids == ["B001"]
    assert load(tmp_path, "amazon-2014/Beauty", **core, catalog="all").catalog.num_items == 3


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            ["{'asin': 'B001', 'title': }", "{'asin': 'B002'}", "nonsense"],
            "2 of 3 lines are malformed, e.g. line 1: ",
        ),
        (["__import__('os').system('true') or {'asin': 'B001'}"], "1 of 1 lines are malformed"),
    ],
)
def test_malformed_metadata_is_counted_and_never_executed(tmp_path: Path, metadata: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(folder_2014(tmp_path, metadata), "amazon-2014/Beauty")


def test_malformed_reviews_are_counted(tmp_path: Path) -> None:
    folder_2014(tmp_path)
    path = tmp_path / "reviews_Beauty_5.json.gz"
    good = reviews(REVIEWS_2014)
    write(path, [good[0], good[1][:40], good[2]])
    with pytest.raises(DataError, match=r"1 of 3 lines are malformed, e.g. line 2: "):
        load(tmp_path, "amazon-2014/Beauty")
    write(path, [good[0], good[1].replace("1300000000", '"yesterday"')])
    with pytest.raises(DataError, match=r"a field has the wrong type: .*yesterday"):
        load(tmp_path, "amazon-2014/Beauty")
    write(path, [good[0], good[1].replace("unixReviewTime", "when")])
    with pytest.raises(DataError, match=r"'unixReviewTime' has no value in 1 of 2 rows, e.g. row 2"):
        load(tmp_path, "amazon-2014/Beauty")
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="the file is empty"):
        load(tmp_path, "amazon-2014/Beauty")
    whole = gzip.compress("\n".join(good).encode())
    for damaged in (whole[:-20], whole[:40] + bytes(20) + whole[60:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged or incomplete gzip file"):
            load(tmp_path, "amazon-2014/Beauty")


def test_line_numbers_count_from_the_start_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_2014(tmp_path)
    monkeypatch.setattr(amazon, "_CHUNK_BYTES", 1)
    write(tmp_path / "reviews_Beauty_5.json.gz", [*reviews(REVIEWS_2014), "nonsense"])
    with pytest.raises(DataError, match="line 5: Expecting value"):
        load(tmp_path, "amazon-2014/Beauty")


def test_missing_files_and_unknown_categories_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reviews_Beauty_5.json.gz is missing; get it from http"):
        load(tmp_path, "amazon-2014/Beauty")
    with pytest.raises(ConfigError, match="Amazon 2014 has no category 'Beautty'; nearest: Beauty"):
        load(tmp_path, "amazon-2014/Beautty")
    with pytest.raises(ConfigError, match="must be amazon-YEAR/CATEGORY"):
        load(tmp_path, "Beauty")


def test_downloads_are_cached_and_their_checksums_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "official"
    source.mkdir()
    folder_2014(source)
    requests: list[tuple[str, str | None]] = []

    def fake_download(url: str, destination: Path, sha256: str | None = None) -> Path:
        requests.append((url, sha256))
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes((source / destination.name).read_bytes())
        return destination

    monkeypatch.setattr(amazon, "download", fake_download)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    config = DataConfig(source="amazon", name="amazon-2014/Beauty")
    load_dataset(config)
    assert load_dataset(config).catalog.num_items == 3
    base = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    names = ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"]
    checksums = [sha256_file(source / name) for name in names]
    assert requests == [
        *[(f"{base}/{name}", None) for name in names],
        *[(f"{base}/{name}", checksum) for name, checksum in zip(names, checksums, strict=True)],
    ]
