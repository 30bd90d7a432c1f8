"""Amazon reviews of 2014, 2018 and 2023 by category, from the official files of the McAuley group.

2014 and 2018 are read from the ready 5-core review files, 2023 from the full ones. The 2014 and 2018
timestamps are days, and the 5-core files are sorted by item: a user's reviews of one day come in item-id
order under `tie_order: source`, as in the published splits. Only metadata of reviewed items are kept; a
reviewed item without metadata stays, untitled.

Sources: McAuley et al. 2015 (arXiv:1506.04757); Ni, Li and McAuley 2019 (EMNLP); Hou et al. 2024
(arXiv:2403.03952)."""

from __future__ import annotations

import ast
import difflib
import gzip
import html
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from recsys.assets import default_cache_dir
from recsys.data import tables
from recsys.data.config import AMAZON_NAME
from recsys.data.sources.raw import RawData, event_frame, item_frame
from recsys.download import download
from recsys.errors import ConfigError, DataError
from recsys.files import sha256_file
from recsys.progress import progress_bar

_SNAP = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_UCSD_2018 = "https://jmcauley.ucsd.edu/data/amazon_v2"
_UCSD_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
_CHUNK_BYTES = 32 << 20

_CATEGORIES_2014 = """
    Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics
    Grocery_and_Gourmet_Food Health_and_Personal_Care Home_and_Kitchen Kindle_Store Movies_and_TV
    Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors
    Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_CATEGORIES_2018 = """
    AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden
    Pet_Supplies Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games
    Video_Games
"""
_CATEGORIES_2023 = """
    All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products
    Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry
    Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food Handmade_Products Health_and_Household
    Health_and_Personal_Care Home_and_Kitchen Industrial_and_Scientific Kindle_Store
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden
    Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games
    Video_Games
"""


@dataclass(frozen=True, kw_only=True)
class _Release:
    """Where one year's files are and how their fields are called. `{}` stands for the category."""

    reviews_url: str
    metadata_url: str
    categories: tuple[str, ...]
    user: str
    item: str
    rating: str
    timestamp: str
    timestamp_unit: str
    parse: Callable[[str], Any]
    """One line of metadata -> a dict; ValueError or SyntaxError when malformed."""


RELEASES = {
    "2014": _Release(
        reviews_url=f"{_SNAP}/reviews_{{}}_5.json.gz",
        metadata_url=f"{_SNAP}/meta_{{}}.json.gz",
        categories=tuple(_CATEGORIES_2014.split()),
        user="reviewerID",
        item="asin",
        rating="overall",
        timestamp="unixReviewTime",
        timestamp_unit="s",
        # Python literals, not JSON; literal_eval runs no code.
        parse=ast.literal_eval,
    ),
    "2018": _Release(
        reviews_url=f"{_UCSD_2018}/categoryFilesSmall/{{}}_5.json.gz",
        metadata_url=f"{_UCSD_2018}/metaFiles2/meta_{{}}.json.gz",
        categories=tuple(_CATEGORIES_2018.split()),
        user="reviewerID",
        item="asin",
        rating="overall",
        timestamp="unixReviewTime",
        timestamp_unit="s",
        parse=json.loads,
    ),
    "2023": _Release(
        reviews_url=f"{_UCSD_2023}/review_categories/{{}}.jsonl.gz",
        metadata_url=f"{_UCSD_2023}/meta_categories/meta_{{}}.jsonl.gz",
        categories=tuple(_CATEGORIES_2023.split()),
        user="user_id",
        item="parent_asin",
        rating="rating",
        timestamp="timestamp",
        timestamp_unit="ms",
        parse=json.loads,
    ),
}


def load(name: str, folder: Path | None) -> RawData:
    """Read `amazon-YEAR/CATEGORY` out of `folder`, or download its two files into the cache.

    Raises:
        ConfigError: there is no such year or category.
        DataError: a file is missing from `folder`, or malformed.
        AssetError: a download failed.
    """
    match = re.fullmatch(AMAZON_NAME, name)
    if match is None:
        raise ConfigError(f"name: {name!r} must be amazon-YEAR/CATEGORY, for instance amazon-2014/Beauty")
    year, category = match.groups()
    release = RELEASES[year]
    if category not in release.categories:
        close = difflib.get_close_matches(category, release.categories, n=3, cutoff=0.3)
        raise ConfigError(
            f"name: Amazon {year} has no category {category!r}; nearest: {', '.join(close or release.categories)}"
        )
    urls = [url.format(category) for url in (release.reviews_url, release.metadata_url)]
    if folder is None:
        cache = default_cache_dir() / "amazon" / year
        reviews_path, metadata_path = (_download(url, cache) for url in urls)
    else:
        reviews_path, metadata_path = (folder / Path(url).name for url in urls)
        for path in (reviews_path, metadata_path):
            if not path.is_file():
                raise DataError(f"path: {path} is missing; get it from {release.reviews_url.rsplit('/', 1)[0]}")
    events = _read_reviews(reviews_path, release)
    return RawData(items=_read_metadata(metadata_path, release, events["item_id"].unique().sort()), events=events)


def _download(url: str, folder: Path) -> Path:
    """The publisher states no checksums: the first download's is kept, and a later difference fetches
    anew."""
    path = folder / Path(url).name
    record = path.with_name(f"{path.name}.sha256")
    download(url, path, record.read_text().strip() if path.exists() and record.exists() else None)
    record.write_text(f"{sha256_file(path)}\n")
    return path


@contextmanager
def _open(path: Path) -> Iterator[Iterator[list[bytes]]]:
    """Chunks of whole lines out of a gzip file, with a progress bar over its compressed bytes."""
    size = path.stat().st_size
    with (
        path.open("rb") as compressed,
        gzip.open(compressed) as file,
        progress_bar(f"read {path.name}", size) as advance,
    ):

        def chunks() -> Iterator[list[bytes]]:
            done = 0
            while lines := cast(BinaryIO, file).readlines(_CHUNK_BYTES):
                yield lines
                position = compressed.tell()
                advance(position - done, "")
                done = position

        try:
            yield chunks()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged or incomplete gzip file ({error}); delete it and start again") from error


def _read_reviews(path: Path, release: _Release) -> pl.DataFrame:
    schema = {
        release.user: pl.String(),
        release.item: pl.String(),
        release.rating: pl.Float64(),
        release.timestamp: pl.Int64(),
    }
    frames = []
    num_lines = 0
    with _open(path) as chunks:
        for lines in chunks:
            content = b"".join(lines)
            try:
                # `schema` names the fields to keep; the review text is never materialised.
                frames.append(pl.read_ndjson(io.BytesIO(content), schema=schema))
            except pl.exceptions.PolarsError as error:
                tables.raise_bad_lines(path.name, content, json.loads, num_lines + 1)
                raise DataError(f"{path}: a field has the wrong type: {str(error).splitlines()[0]}") from error
            num_lines += len(lines)
    if not frames:
        raise DataError(f"{path}: the file is empty")
    reviews = pl.concat(frames)
    return event_frame(
        {
            "user_id": tables.as_ids(reviews[release.user], path.name),
            "item_id": tables.as_ids(reviews[release.item], path.name),
            "rating": reviews[release.rating],
            "timestamp": tables.as_timestamp(reviews[release.timestamp], path.name, release.timestamp_unit),
        }
    )


def _read_metadata(path: Path, release: _Release, wanted: pl.Series) -> pl.DataFrame:
    """Metadata of the wanted items, in the order of `wanted`."""
    # A category's metadata hold many times the reviewed items, and parsing is what costs: look at the id
    # first.
    item_id = re.compile(rf"""['"]{release.item}['"]\s*:\s*['"]([^'"]+)['"]""".encode())
    missing = set(wanted)
    records: dict[str, dict[str, Any]] = {}
    bad: list[str] = []
    num_lines = 0
    with _open(path) as chunks:
        for lines in chunks:
            for line in lines:
                num_lines += 1
                match = item_id.search(line)
                if (match is not None and match[1].decode() not in missing) or not line.strip():
                    continue
                try:
                    record = release.parse(line.decode("utf-8"))
                    key = record[release.item]
                except (ValueError, SyntaxError, KeyError, TypeError) as error:
                    bad.append(f"line {num_lines}: {error}")
                    continue
                if key in missing:
                    missing.discard(key)
                    records[key] = _texts(record)
    if bad:
        raise DataError(
            f"{path}: {len(bad)} of {num_lines} lines are malformed, e.g. {'; '.join(bad[: tables.NUM_EXAMPLES])}"
        )
    schema = {name: pl.String() for name in ("title", "brand", "description", "features")}
    frame = pl.DataFrame(
        [records.get(key, {}) for key in wanted], schema={**schema, "categories": pl.List(pl.String())}
    )
    columns = {"item_id": wanted, **frame.with_columns(pl.col("categories").fill_null([])).to_dict()}
    return item_frame({name: column for name, column in columns.items() if column.null_count() < len(column)})


def _texts(record: dict[str, Any]) -> dict[str, Any]:
    """The text fields of a metadata record of any year."""
    title = _clean(record.get("title"))
    return {
        # Some 2018 records hold a piece of the page's script in place of the title.
        "title": None if title is not None and "getTime" in title else title,
        "brand": _clean(record.get("brand") or record.get("store")),
        "description": _clean(record.get("description")),
        "features": _clean(record.get("feature") or record.get("features")),
        "categories": _categories(record.get("categories") or record.get("category") or []),
    }


def _categories(paths: list[Any]) -> list[str]:
    """The distinct names of one path or several (2014), in order."""
    flat = [name for path in paths for name in (path if isinstance(path, list) else [path])]
    return list(dict.fromkeys(text for name in flat if (text := _clean(name)) is not None))


def _clean(value: Any) -> str | None:
    """One line of text without HTML entities and tags; None where empty."""
    text = " ".join(map(str, value)) if isinstance(value, list) else value
    if not isinstance(text, str):
        return None
    return " ".join(re.sub(r"<[^<>]*>", " ", html.unescape(text)).split()) or None
