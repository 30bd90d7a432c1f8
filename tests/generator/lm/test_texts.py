"""Intentions and preferences: what the offline texts say of a catalogue, tables of written ones, and cutting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_shop import CATALOG

from recsys.data import Catalog
from recsys.errors import DataError
from recsys.generator.lm.config import TextConfig
from recsys.generator.lm.texts import (
    CatalogTexts,
    Preferences,
    TextTable,
    column_texts,
    first_words,
    listed,
    make_texts,
)


def catalogue(rows: list[tuple[str | None, list[str], str | None, str | None]]) -> Catalog:
    schema = {"title": pl.String, "categories": pl.List(pl.String), "brand": pl.String, "description": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return Catalog(frame=frame.insert_column(0, pl.Series("item_id", [f"id{row}" for row in range(len(rows))])))


SALON = catalogue(
    [
        ("Argan Oil Shampoo 500ml", ["Beauty", "Hair", "Shampoos"], "Acme", "Gentle lather for dry hair"),
        ("Argan Oil Mask", ["Beauty", "Hair", "Masks"], "Acme", None),
        ("Mint Shampoo", ["Beauty", "Hair", "Shampoos"], "Bold's", "Gentle lather, men's choice"),
        ("Red Lipstick", ["Beauty", "Lips"], "Bold's", "Matte finish"),
        ("Pink Lipstick", ["Beauty", "Lips"], None, "Matte finish, women's choice"),
        (None, ["Beauty"], None, None),
    ]
)


def test_what_stands_out_in_an_item() -> None:
    texts = CatalogTexts(SALON, TextConfig())
    # "Beauty" is said of all, "Hair" of half; of equally frequent names the last one is the most specific.
    assert texts.categories[0] == ["Hair", "Shampoos"]
    assert texts.kinds == ["shampoos", "masks", "shampoos", "lips", "lips", ""]
    assert texts.brands == ["Acme", "Acme", "Bold's", "Bold's", "", ""]
    # Not "mint" or "pink", which one item has; not "shampoo", which is its kind; not both "argan" and "argan oil".
    assert texts.keyphrases[5] == []
    assert set(texts.keyphrases[4]) <= {"lipstick", "matte finish", "matte", "finish", "choice"}
    for phrases, kind in zip(texts.keyphrases, texts.kinds, strict=True):
        words = [word.rstrip("s") for phrase in phrases for word in phrase.split()]
        assert len(words) == len(set(words))
        assert kind.rstrip("s") not in words


def test_intentions_are_said_in_up_to_five_ways() -> None:
    texts = CatalogTexts(SALON, TextConfig(keyphrases=2))
    assert texts.keyphrases[1] == ["argan oil", "hair"]
    assert texts.intentions(1) == [
        "argan oil hair",
        "something with argan oil and hair",
        "masks, argan oil, hair",
        "I am looking for masks. Important to me: argan oil and hair.",
        "masks by Acme",
    ]
    assert texts.intentions(5) == []
    assert CatalogTexts(SALON, TextConfig(keyphrases=2, max_words=3)).intentions(1)[2] == "masks, argan oil"


def test_preferences_are_of_the_whole_history_and_of_its_parts() -> None:
    texts = CatalogTexts(SALON, TextConfig(recent_items=2, keyphrases=1, top=2))
    texts.keyphrases = [["argan"], ["argan"], ["gentle"], ["matte"], ["matte"], []]
    said = texts.preferences(0, [0, 1, 2, 3, 4])
    assert said.overall == "Mostly into shampoos and lips. Likes Acme and Bold's. Pays attention to argan and matte."
    assert said.long_term == "For a long time into shampoos and masks. Stays with Acme. Keeps coming back to argan."
    assert said.short_term == "Lately into lips. At the moment interested in matte."
    assert said.known == [("overall", said.overall), ("long-term", said.long_term), ("short-term", said.short_term)]
    assert texts.preferences(0, [0, 1]) == Preferences(overall=texts.preferences(9, [0, 1]).overall)
    assert texts.preferences(0, [5]) == Preferences()
    assert texts.preferences(0, []).known == []


def test_words_of_held_out_items_are_not_counted() -> None:
    rows = [("Blue Glue", ["A"], None, None), ("Green Glue", ["B"], None, None), ("Green Tape", ["C"], None, None)]
    rows += [(f"Thing number {row}", ["D"], None, None) for row in range(3)]
    catalog = catalogue(rows)
    assert CatalogTexts(catalog, TextConfig()).keyphrases[1] == ["green", "glue"]
    without_tape = CatalogTexts(catalog, TextConfig(), np.array([0, 1, 3, 4, 5]))
    assert without_tape.keyphrases[1] == ["glue"]


def test_possessives_do_not_keep_each_other_out() -> None:
    # "men's" of the text and "Bold's" of the brand share nothing but the s.
    rows: list[tuple[str | None, list[str], str | None, str | None]] = [
        ("men's", ["A"], "Bold's", None),
        ("men's", ["B"], "Bold's", None),
        *[(None, ["C"], None, None)] * 3,
    ]
    assert CatalogTexts(catalogue(rows), TextConfig()).keyphrases[0] == ["men's"]


def test_columns_become_single_lines() -> None:
    frame = CATALOG.frame.with_columns(
        pl.Series("brand", ["  two \n words. ", None, "", "-", "a.b", "c"]),
        pl.Series("tags", [["x", "", "y"], [], None, ["z"], ["."], ["u", None]], dtype=pl.List(pl.String)),
    )
    catalog = Catalog(frame=frame)
    assert column_texts(catalog, "brand") == ["two words", "", "", "", "a.b", "c"]
    assert column_texts(catalog, "tags") == ["x, y", "", "", "z", "", "u"]
    assert column_texts(catalog, "none") == [""] * 6


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("a b  c", 3, "a b c"),
        ("a b, c", 2, "a b"),
        ("One two. Three four", 3, "One two."),
        ("One. Two three four five", 4, "One. Two three four"),  # a sentence of a quarter would be too little
        ("", 2, ""),
    ],
)
def test_first_words(text: str, limit: int, cut: str) -> None:
    assert first_words(text, limit) == cut


def test_lists_of_names() -> None:
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def rows_of(*rows: tuple[str, str, str]) -> list[dict[str, object]]:
    return [dict(zip(("kind", "id", "text"), row, strict=True)) for row in rows]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["texts.parquet", "texts.jsonl"])
def test_tables_of_written_texts(tmp_path: Path, name: str) -> None:
    rows = rows_of(
        ("intention", "q", "wants  ink"),
        ("intention", "q", "needs a great deal of blue"),
        ("long_term", "ann", "Writes letters."),
        ("overall", "ann", "Writes."),
        ("overall", "ben", "Draws."),
    )
    config = TextConfig(table=write(tmp_path / name, rows), max_words=4)
    table = make_texts(config, CATALOG, ["ben", "ann"])
    assert table.intentions(1) == ["wants ink", "needs a great deal"]
    assert table.intentions(0) == []
    assert table.preferences(1, [0]) == Preferences(overall="Writes.", long_term="Writes letters.")
    assert table.preferences(0, []) == Preferences(overall="Draws.")
    assert table.preferences(7, [0]) == Preferences()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of(("wish", "q", "x")), r"kind: must be one of intention, overall, long_term, short_term \(1 of 1 rows"),
        (rows_of(("intention", "q", " ")), "text: is empty; leave the row out"),
        (rows_of(("intention", "nope", "x")), r"id: is no item of the catalogue .*'id': 'nope'"),
        (rows_of(("overall", "q", "x")), "id: is no user of the log"),
        (rows_of(("overall", "ann", "x"), ("overall", "ann", "y")), r"id: has several texts of one kind; keep one \(2"),
        ([{"kind": "intention", "id": 3, "text": "x"}], "column 'id' must be text, found Int64"),
        ([{"kind": "intention", "id": "q"}], "column 'text' must be text, found None"),
        ([{"kind": None, "id": "q", "text": "x"}, *rows_of(("intention", "q", "x"))], "kind: is null"),
    ],
)
def test_tables_that_do_not_fit_are_errors_of_one_line(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        TextTable.load(write(tmp_path / "t.jsonl", rows), CATALOG.item_ids, ["ann"], 9)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables_are_errors(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    (tmp_path / "t.parquet").write_text("no")
    for name, message in (("t.csv", "found .csv"), ("t.parquet", "cannot be read"), ("no.jsonl", "cannot be read")):
        with pytest.raises(DataError, match=message):
            TextTable.load(tmp_path / name, [], [], 9)
