"""Teachers: what gives a target away, and what the teacher made of rules says."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import Catalog
from recsys.generator.lm.config import TextConfig
from recsys.generator.lm.reasoning import Case, Chain
from recsys.generator.lm.teacher import RuleTeacher, names_target
from recsys.generator.lm.texts import CatalogTexts, column_texts


def catalogue(rows: list[tuple[str | None, list[str], str | None]]) -> Catalog:
    schema = {"title": pl.String, "categories": pl.List(pl.String), "brand": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return Catalog(frame=frame.insert_column(0, pl.Series("item_id", [str(row) for row in range(len(rows))])))


SALON = catalogue(
    [
        ("Argan Shampoo", ["Shampoos"], "Acme"),
        ("Mint Shampoo", ["Shampoos"], "Bolt"),
        ("Argan Mask", ["Masks"], "Acme"),
        ("Mint Soap", ["Soaps"], "Acme"),
        ("Grey Comb", ["Combs"], None),
        (None, [], None),
        ("Grey Bag", ["Bags"], "Bolt"),
    ]
)


def make_teacher(catalog: Catalog = SALON) -> RuleTeacher:
    texts = CatalogTexts(catalog, TextConfig(keyphrases=1))
    return RuleTeacher(texts, column_texts(catalog, "title"), top=2, max_words=40)


def case(history: tuple[int, ...], target: int) -> Case:
    return Case(place=0, user=0, history=history, target=target)


@pytest.mark.parametrize(
    ("intent", "title", "history", "named"),
    [
        ("Wants the RED pen, now.", "Red Pen", [], True),
        ("Wants a red, sharp pen.", "Red Pen", [], False),
        ("Wants redder pens.", "Red Pen", [], False),
        ("Reads tales of the deep sea at night.", "Tales of the Deep Sea, Volume 2", [], True),
        (
            "Reads tales of the deep sea at night.",
            "Tales of the Deep Sea, Volume 2",
            ["Tales of the Deep Sea 1"],
            False,
        ),
        ("Reads of the deep.", "Tales of the Deep Sea, Volume 2", [], False),
        ("Wants pens.", "", [], False),
    ],
)
def test_what_gives_a_target_away(intent: str, title: str, history: list[str], named: bool) -> None:
    assert names_target(Chain(evidence="Draws.", preference="Likes ink.", intent=intent), title, history) == named


def test_a_title_that_runs_over_two_steps_counts_too() -> None:
    assert names_target(Chain(evidence="Draws.", preference="Likes red", intent="pen and paper."), "Red Pen", [])


def test_reasons_name_what_history_and_target_share_first() -> None:
    (shared,) = make_teacher().explain([case((1, 4, 0, 3), 2)])
    assert shared == Chain(
        evidence="Chose 4 items: shampoos (2), combs (1). Brands: Acme (2), Bolt (1). Latest: soaps.",
        preference="Mostly into shampoos and combs. Likes Acme. Pays attention to argan and mint.",
        intent="Is ready for something else: masks by Acme with argan.",
    )
    (again,) = make_teacher().explain([case((4, 2, 3, 1), 0)])
    assert again == Chain(
        evidence="Chose 4 items: shampoos (1), combs (1). Brands: Acme (2), Bolt (1). Latest: shampoos.",
        preference="Mostly into shampoos and combs. Likes Acme. Pays attention to argan and mint.",
        intent="Wants more of shampoos by Acme with argan.",
    )


def test_what_has_no_category_is_explained_by_the_history_or_not_at_all() -> None:
    teacher = make_teacher()
    assert teacher.explain([case((5, 5), 5)]) == [None]
    (chain,) = teacher.explain([case((4, 5), 5)])
    assert chain == Chain(
        evidence="Chose 2 items: combs (1).", preference="Mostly into combs.", intent="Wants more of combs."
    )
    (chain,) = teacher.explain([case((5,), 4)])
    assert chain == Chain(
        evidence="Chose one item.", preference="Nothing stands out.", intent="Is ready for something else: combs."
    )


def test_names_that_are_the_title_are_left_out() -> None:
    rows: list[tuple[str | None, list[str], str | None]] = [
        ("Drama", ["Drama"], None),
        ("Heat", ["Drama"], "Action"),
        ("Speed", ["Action"], "Action"),
        *[(f"Film {number}", ["Other"], None) for number in range(4)],
    ]
    teacher = make_teacher(catalogue(rows))
    assert teacher.explain([case((1, 2), 0)]) == [
        Chain(
            evidence="Chose 2 items: action (1). Brands: Action (2). Latest: action.",
            preference="Mostly into action. Likes Action.",
            intent="Wants more of action.",
        )
    ]
    # Two names that make up the title where they meet: dropped as a whole.
    rows = [("Film 1", ["Gangs"], None), ("Gangs, combs", ["Other"], None), ("Film 2", ["Combs"], None)]
    titles = ["Film 1", "Gangs and combs", "Film 2"]
    texts = CatalogTexts(catalogue(rows), TextConfig())
    teacher = RuleTeacher(texts, titles, top=2, max_words=40)
    assert teacher.explain([case((0, 2), 1)]) == [None]


WORDS = st.lists(st.sampled_from(["red", "pen", "ink", "desk", "oak", "Acme"]), max_size=3).map(" ".join)
ROWS = st.lists(st.tuples(WORDS, st.lists(WORDS, max_size=2), WORDS), min_size=4, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, history=st.lists(st.integers(0, 3), min_size=1, max_size=5), target=st.integers(0, 3))
def test_rules_never_name_the_target(
    rows: list[tuple[str | None, list[str], str | None]], history: list[int], target: int
) -> None:
    catalog = catalogue(rows)
    (chain,) = make_teacher(catalog).explain([case(tuple(history), target)])
    title = " ".join((catalog.titles[target] or "").lower().split())
    if chain is not None and title:
        said = " ".join((chain.evidence, chain.preference, chain.intent)).lower()
        assert f" {title} " not in " " + "".join(letter if letter.isalnum() else " " for letter in said) + " "
        assert all((chain.evidence, chain.preference, chain.intent))
        assert "\n" not in said
