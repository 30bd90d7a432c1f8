"""MovieLens 100K, 1M and latest-small, from their official files or RecBole's copy of 100K.

All layouts give the same form: title "The Usual Suspects", year "1995", categories ["Crime", "Thriller"]. The
rows of latest-small are sorted by film within a user, so ties in time come in film order under `tie_order:
source`.

Source: Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from recsys.assets import fetch
from recsys.data import tables
from recsys.data.sources.raw import RawData, event_frame, item_frame
from recsys.errors import DataError

# The order of the flags in u.item.
_GENRES_100K = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
]
_NO_GENRE = ["unknown", "(no genres listed)"]
# RecBole's copy spells it this way.
_NO_TITLE = ["unknown", "unkonwn"]
_YEAR = r"\s*\((\d{4})\)(?: \(V\))?\s*$"
_ARTICLE_LAST = r"^(.+?), (The|A|An|Il|La|Le|Les|Los|Las|El|Die|Der|Das)( \(.*\))?$"
_ELISION_LAST = r"^(.+?), (L')( \(.*\))?$"


def load(name: str, folder: Path | None) -> RawData:
    """Read `name` out of `folder`, or fetch it when no folder is given.

    Raises:
        DataError: the folder holds none of the known layouts, or a file is malformed.
        AssetError: it could not be fetched.
    """
    folder = fetch(name) if folder is None else folder
    if (folder / "u.data").is_file():
        return _official_100k(folder)
    if (folder / "ml-100k.inter").is_file():
        return _recbole_100k(folder)
    if (folder / "ratings.dat").is_file():
        return _official_1m(folder)
    if (folder / "ratings.csv").is_file():
        return _official_latest(folder)
    raise DataError(
        f"path: {folder} holds no MovieLens files (u.data and u.item, ratings.dat and movies.dat, or "
        "ratings.csv and movies.csv)"
    )


def _official_100k(folder: Path) -> RawData:
    events = _read(folder / "u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])
    columns = ["item_id", "title", "release", "video_release", "url", *_GENRES_100K]
    items = _read(folder / "u.item", "|", columns, encoding="latin-1")
    genres = items.select(
        pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K).list.drop_nulls()
    ).to_series()
    return RawData(items=_items(items["item_id"], items["title"], genres), events=_events(events, "u.data"))


def _recbole_100k(folder: Path) -> RawData:
    events = _read(folder / "ml-100k.inter", "\t", ["user_id", "item_id", "rating", "timestamp"], has_header=True)
    items = _read(folder / "ml-100k.item", "\t", ["item_id", "title", "year", "genres"], has_header=True)
    # One title kept its year in the copy, where the last column but one holds something else then.
    titles = items.select(
        pl.when(pl.col("year").str.contains(r"^\d{4}$"))
        .then(pl.col("title") + " (" + pl.col("year") + ")")
        .otherwise(pl.col("title"))
    ).to_series()
    genres = items["genres"].str.split(" ")
    return RawData(items=_items(items["item_id"], titles, genres), events=_events(events, "ml-100k.inter"))


def _official_1m(folder: Path) -> RawData:
    events = _read(folder / "ratings.dat", "::", ["user_id", "item_id", "rating", "timestamp"])
    items = _read(folder / "movies.dat", "::", ["item_id", "title", "genres"], encoding="latin-1")
    genres = items["genres"].str.split("|")
    return RawData(items=_items(items["item_id"], items["title"], genres), events=_events(events, "ratings.dat"))


def _official_latest(folder: Path) -> RawData:
    events = tables.read_table(folder / "ratings.csv")
    items = tables.read_table(folder / "movies.csv")
    for name, frame, columns in (
        ("ratings.csv", events, {"userId", "movieId", "rating", "timestamp"}),
        ("movies.csv", items, {"movieId", "title", "genres"}),
    ):
        if missing := sorted(columns - set(frame.columns)):
            raise DataError(f"{folder / name}: column {missing[0]!r} is missing among {', '.join(frame.columns)}")
    films = _items(items["movieId"], items["title"], items["genres"].str.split("|"))
    if (folder / "tags.csv").is_file():
        tags = tables.read_table(folder / "tags.csv").group_by("movieId").agg(pl.col("tag").unique(maintain_order=True))
        films = films.join(tags, left_on="item_id", right_on="movieId", how="left", maintain_order="left")
        films = films.with_columns(pl.col("tag").fill_null([])).rename({"tag": "tags"})
    return RawData(
        items=films, events=_events(events.rename({"userId": "user_id", "movieId": "item_id"}), "ratings.csv")
    )


def _read(
    path: Path, separator: str, columns: list[str], *, encoding: str = "utf-8", has_header: bool = False
) -> pl.DataFrame:
    """A delimited file without quoting, all columns as text."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode(encoding)
        if len(separator) > 1:
            # Polars takes separators of one byte only; no field of these files holds a tab.
            text, separator = text.replace(separator, "\t"), "\t"
        frame = pl.read_csv(
            io.StringIO(text), separator=separator, has_header=has_header, quote_char=None, infer_schema=False
        )
    except (UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: malformed: {str(error).strip().splitlines()[0]}") from error
    if frame.width != len(columns):
        raise DataError(f"{path}: expected {len(columns)} columns, found {frame.width}")
    return frame.rename(dict(zip(frame.columns, columns, strict=True)))


def _items(item_ids: pl.Series, titles: pl.Series, genres: pl.Series) -> pl.DataFrame:
    frame = pl.DataFrame({"item_id": item_ids, "raw": titles, "categories": genres}).select(
        "item_id",
        pl.col("raw").str.replace(_YEAR, "").str.strip_chars().alias("title"),
        pl.col("raw").str.extract(_YEAR, 1).alias("year"),
        pl.col("categories").list.set_difference(_NO_GENRE),
    )
    title = pl.col("title").str.replace(_ARTICLE_LAST, "${2} ${1}${3}").str.replace(_ELISION_LAST, "${2}${1}${3}")
    frame = frame.with_columns(pl.when(~pl.col("title").is_in(_NO_TITLE)).then(title).alias("title"))
    return item_frame(frame.to_dict())


def _events(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    return event_frame(
        {
            "user_id": tables.as_ids(frame["user_id"], table),
            "item_id": tables.as_ids(frame["item_id"], table),
            "rating": tables.as_number(frame["rating"], table),
            "timestamp": tables.as_timestamp(frame["timestamp"], table, "s"),
        }
    )
