"""Every MovieLens layout, in small files of the true formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.data import DataConfig, Dataset, load_dataset
from recsys.data.sources import movielens
from recsys.errors import DataError

# Genre flags of u.item: unknown, Action, Adventure, Animation, Children's, Comedy, Crime, Documentary, ...
RATINGS_100K = "196\t1\t3\t881250949\n186\t2\t3\t891717742\n196\t3\t1\t878887116\n186\t4\t5\t881250949\n"
U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)"
    "|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "2|Horseman on the Roof, The (Hussard sur le toit, Le) (1995)|19-Apr-1996||http://x"
    "|0|0|0|0|0|0|0|0|1|0|0|0|0|0|0|0|0|0|0\n"
    "3|Misérables, Les (1995)|01-Jan-1995||http://x|0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0\n"
    "4|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "5|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x"
    "|0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "6|Enfer, L' (1994)|01-Jan-1994||http://x|0|0|0|0|0|0|0|0|1|0|0|0|0|0|1|1|0|0|0\n"
)
RECBOLE_ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    "2\tHorseman on the Roof, The (Hussard sur le toit, Le)\t1995\tDrama\n"
    "3\tMisérables, Les\t1995\tDrama Musical\n"
    "4\tunkonwn\tunkonwn\tunknown\n"
    "5\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's\n"
    "6\tEnfer, L'\t1994\tDrama Romance Sci-Fi\n"
)


def official_100k(folder: Path) -> Path:
    folder.mkdir()
    (folder / "u.data").write_text(RATINGS_100K)
    (folder / "u.item").write_bytes(U_ITEM.encode("latin-1"))
    return folder


def recbole_100k(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS_100K
    )
    (folder / "ml-100k.item").write_text(RECBOLE_ITEM, encoding="utf-8")
    return folder


def load(folder: Path) -> Dataset:
    return load_dataset(DataConfig(path=folder))


def test_both_layouts_of_100k_give_the_same_data_set(tmp_path: Path) -> None:
    official, recbole = load(official_100k(tmp_path / "official")), load(recbole_100k(tmp_path / "recbole"))
    assert official.catalog.frame.equals(recbole.catalog.frame)
    assert official.interactions.frame.equals(recbole.interactions.frame)
    assert official.interactions.user_ids == recbole.interactions.user_ids == ["196", "186"]


def test_titles_years_and_genres_are_taken_apart(tmp_path: Path) -> None:
    frame = load(official_100k(tmp_path / "ml")).catalog.frame
    assert frame.to_dict(as_series=False) == {
        "item_id": ["1", "2", "3", "4", "5", "6"],
        "title": [
            "Toy Story",
            "The Horseman on the Roof (Hussard sur le toit, Le)",
            "Les Misérables",
            None,
            "Land Before Time III: The Time of the Great Giving",
            "L'Enfer",
        ],
        "categories": [
            ["Animation", "Children's", "Comedy"],
            ["Drama"],
            ["Drama", "Musical"],
            [],
            ["Animation", "Children's"],
            ["Drama", "Romance", "Sci-Fi"],
        ],
        "year": ["1995", "1995", "1995", None, "1995", "1994"],
    }


def test_ratings_and_times_of_100k_are_kept(tmp_path: Path) -> None:
    frame = load(official_100k(tmp_path / "ml")).interactions.frame
    assert frame["timestamp"].to_list() == [878887116, 881250949, 881250949, 891717742]
    assert frame["rating"].to_list() == [1.0, 3.0, 5.0, 3.0]


def test_1m_is_read_from_its_double_colons(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::2::5::978300760\n1::1::3::978302109\n")
    movies = "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Cité, La: Part 2 (1998)::Drama\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    dataset = load(tmp_path)
    assert dataset.interactions.frame["item"].to_list() == [1, 0]
    assert dataset.catalog.titles == ["Toy Story", "Cité, La: Part 2"]
    assert dataset.catalog.frame["categories"].to_list() == [["Animation", "Children's", "Comedy"], ["Drama"]]


def test_latest_small_has_tags_and_quoted_titles(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,7,4.5,964981247\n")
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n1,Toy Story (1995),Adventure|Comedy\n"
        '7,"American President, The (1995)",Drama\n9,Nowhere,(no genres listed)\n'
    )
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,pixar,1\n2,1,fun,2\n3,1,pixar,3\n")
    dataset = load(tmp_path)
    assert dataset.catalog.titles == ["Toy Story", "The American President", "Nowhere"]
    assert dataset.catalog.frame["categories"].to_list() == [["Adventure", "Comedy"], ["Drama"], []]
    assert dataset.catalog.frame["tags"].to_list() == [["pixar", "fun"], [], []]
    assert dataset.catalog.frame["year"].to_list() == ["1995", "1995", None]
    assert dataset.interactions.frame["item"].to_list() == [1, 0]
    assert dataset.interactions.frame["rating"].to_list() == [4.5, 4.0]


def test_without_a_path_the_named_asset_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"ml-100k": recbole_100k(tmp_path / "cache")}
    monkeypatch.setattr(movielens, "fetch", folders.__getitem__)
    dataset = load_dataset(DataConfig())
    assert (dataset.name, dataset.catalog.num_items) == ("ml-100k", 6)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no MovieLens files"):
        load(tmp_path)
    folder = official_100k(tmp_path / "ml")
    (folder / "u.item").write_text("1|Toy Story (1995)\n")
    with pytest.raises(DataError, match=r"u.item: expected 24 columns, found 2"):
        load(folder)
    (folder / "u.item").unlink()
    with pytest.raises(DataError, match=r"u.item: no such file"):
        load(folder)
    (folder / "u.data").rename(folder / "ratings.csv")
    (folder / "movies.csv").write_text("movieId,title,genres\n1,a,b\n")
    with pytest.raises(DataError, match="column 'movieId' is missing"):
        load(folder)
