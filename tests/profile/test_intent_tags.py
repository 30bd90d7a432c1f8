from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from film_tags import Films, film_catalog

from recsys.data import Catalog
from recsys.profile.intents.tags import Part, PartReader, Tag, fits


@pytest.fixture(scope="module")
def films() -> Films:
    return Films()


def tag(films: Films, text: str) -> Tag:
    found = films.vocabulary.parse(text)
    assert found is not None
    return found


def test_parts_are_what_enough_items_bear_and_what_tells_them_apart(films: Films) -> None:
    bearers = films.vocabulary.bearers
    assert bearers[Part("phrase", "star harbor")].tolist() == [0, 1, 2, 3, 4]
    assert bearers[Part("topic", "androids")].tolist() == [5, 6, 7]
    # "seen" tags films of all kinds, "Dust" is a title's number of its own, two films are of the 2000s at most.
    assert not {part.name for part in bearers} & {"seen", "paris", "2000s"}
    assert all(3 <= len(items) <= 18 for items in bearers.values())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sci-fi of the 1980s", "1980s Sci-Fi"),
        ("Comedies from the 1990s", "1990s Comedy"),
        ("STAR HARBOR", "star harbor"),
        ("romance action", "Action Romance"),
        ("zeppelin Sci-Fi", None),
        ("Sci-Fi Action Comedy", None),
        ("of the", None),
        ("", None),
    ],
)
def test_a_tag_is_read_from_a_text_that_the_catalogue_has_all_words_of(
    films: Films, text: str, name: str | None
) -> None:
    found = films.vocabulary.parse(text)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("star harbor", None),
        ("androids Sci-Fi", None),
        ("1980s Sci-Fi", None),
        ("Tall Films Comedy", "invalid"),  # two films
        ("Western", "unspecific"),  # sixteen of 36
        ("1990s", "unspecific"),  # no noun
        ("star harbor Sci-Fi", "redundant"),  # all of Star Harbor is
    ],
)
def test_a_good_tag_has_items_says_something_and_wastes_no_word(films: Films, text: str, fault: str | None) -> None:
    assert films.vocabulary.fault(tag(films, text)) == fault


def test_the_items_of_a_tag_are_those_that_bear_all_parts_by_cosine(films: Films) -> None:
    """Against a dense reference."""
    vocabulary = films.vocabulary
    parts = sorted(vocabulary.bearers)
    matrix = np.zeros((vocabulary.num_items, len(parts)))
    for column, part in enumerate(parts):
        matrix[vocabulary.bearers[part], column] = vocabulary.weight(part)
    lengths = np.linalg.norm(matrix, axis=1)
    for wanted in (tag(films, "1980s Sci-Fi"), tag(films, "Romance"), tag(films, "Tall Films Action")):
        vector = np.array([vocabulary.weight(part) if part in wanted.parts else 0.0 for part in parts])
        expected = matrix @ vector / np.maximum(lengths * np.linalg.norm(vector), 1e-12)
        np.testing.assert_allclose(vocabulary.cosines(wanted), expected)
        fitting = [item for item in range(vocabulary.num_items) if fits(wanted, films.parts.of(item))]
        ranked = sorted(fitting, key=lambda item: (-round(expected[item], 9), item))
        assert vocabulary.items(wanted, 3).tolist() == ranked[:3]
        assert vocabulary.fitting(wanted).tolist() == fitting


def test_tags_that_read_the_same_or_mean_the_same_items_are_one(films: Films) -> None:
    robots = films.vocabulary.tag(Part("phrase", "robots"), Part("category", "Sci-Fi"))
    dawn = films.vocabulary.tag(Part("phrase", "dawn"), Part("category", "Sci-Fi"))
    harbor = tag(films, "star harbor")
    assert list(films.vocabulary.without_repeats([robots, harbor, dawn, robots])) == [robots, harbor]


def test_an_item_is_read_as_the_catalogue_has_it_now(films: Films) -> None:
    frame = film_catalog().frame.with_columns(
        title=pl.when(pl.col("item_id") == "f0").then(pl.lit("Plain Harbor (1999)")).otherwise("title")
    )
    changed = Films(Catalog(frame=frame))
    reader = PartReader(changed.catalog, changed.attributes, films.vocabulary.phrases)
    assert fits(tag(films, "star harbor"), films.parts.of(0))
    assert not fits(tag(films, "star harbor"), reader.of(0))
    assert fits(tag(films, "1990s Sci-Fi"), reader.of(0))
