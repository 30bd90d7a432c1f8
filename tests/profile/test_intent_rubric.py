from __future__ import annotations

import pytest
from film_tags import Films
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.profile.intents.explain import RuleExplainer
from recsys.profile.intents.rubric import PRINCIPLES, Claim, ExplanationRubric, Principle
from recsys.profile.intents.tags import fits

FILMS = Films()
RUBRIC = ExplanationRubric(FILMS.attributes)
RULES = RuleExplainer(FILMS.attributes.commonplace)
NAMES = sorted({(each.kind, each.name) for item in range(36) for each in FILMS.attributes.of(item)})


def claim(tag: str, item: int, history: list[int] | None = None) -> Claim:
    found = FILMS.vocabulary.parse(tag)
    assert found is not None
    past = None if history is None else tuple(FILMS.subjects.of(each) for each in history)
    return Claim(tag=found, item=FILMS.subjects.of(item), history=past)


def test_the_rules_name_the_tag_and_what_the_item_has_beside_it() -> None:
    texts = RULES.explain([claim("1980s Sci-Fi", 3), claim("Romance", 18), claim("star harbor", 1)])
    assert texts == [
        "Fits your interest in 1980s Sci-Fi: Action, by Tall Films.",
        "Fits your interest in Romance: Comedy, by Tall Films, from the 1980s.",
        "Fits your interest in star harbor: Sci-Fi, from the 1980s.",
    ]


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("It is 1980s Sci-Fi with Action, by Tall Films.", []),
        ('You chose "Tears", and this is 1980s Sci-Fi, though no Romance.', []),  # Tears is one
        ("You chose Robots of Dawn 0; this is 1980s Sci-Fi too.", []),
        ("Some good Action.", ["relevant"]),
        ("1980s Sci-Fi and Comedy.", ["factual"]),
        ("1980s Sci-Fi, made again in the 1990s.", ["factual"]),
        ("1980s Sci-Fi, like the 2010s never were.", ["factual", "safe"]),
        ("1980s Sci-Fi for those who liked Robots of Dawn 3.", ["factual"]),  # not in the history
        ('1980s Sci-Fi for those who liked "Alien".', ["factual"]),
        ("1980s Sci-Fi. With Action. By Tall Films.", ["clear"]),
        ("1980s Sci-Fi, " + "and more of it, " * 20, ["clear"]),
        ("1980s Sci-Fi that everyone loves!", ["safe"]),
        ("1980s Sci-Fi for $3.", ["safe"]),
        ("1980s Sci-Fi, ask ann@example.org.", ["safe"]),
        ("1980s Sci-Fi, see www.example.org.", ["safe"]),
        ("1980s Sci-Fi, call +49 170 1234567.", ["safe"]),
        ("The best 1980s Sci-Fi, guaranteed.", ["safe"]),
        ("1980s Sci-Fi, 100 % good.", ["safe"]),
        ("", list(PRINCIPLES)),
        (" ... ", list(PRINCIPLES)),
    ],
)
def test_a_text_breaks_the_principles_that_it_should(text: str, broken: list[Principle]) -> None:
    assert RUBRIC.broken(text, claim("1980s Sci-Fi", 3, [10, 5, 0])) == broken


def test_a_text_for_whoever_reads_it_names_no_history() -> None:
    text = 'This is 1980s Sci-Fi, like "Star Harbor 0".'
    assert RUBRIC.broken(text, claim("1980s Sci-Fi", 3, [0])) == []
    assert RUBRIC.broken(text, claim("1980s Sci-Fi", 3)) == ["factual"]


def test_a_tag_that_nothing_of_the_history_has_is_none_of_the_readers() -> None:
    assert RUBRIC.broken("Fits your interest in Romance.", claim("Romance", 12, [15, 30])) == ["relevant"]


def test_a_tag_must_be_true_of_the_item() -> None:
    assert RUBRIC.broken("Fits your interest in Comedy.", claim("Comedy", 3, [15])) == ["relevant", "factual"]


@settings(max_examples=150, deadline=None)
@given(
    item=st.integers(0, 35),
    history=st.lists(st.integers(0, 35), max_size=6),
    named=st.lists(st.sampled_from(NAMES), max_size=3),
    cited=st.lists(st.integers(0, 35), max_size=2),
    tag=st.sampled_from(["1980s Sci-Fi", "Romance", "star harbor", "1990s Comedy", "Tall Films Action", "Western"]),
)
def test_a_text_passes_as_factual_only_if_all_that_it_names_is_true(
    item: int, history: list[int], named: list[tuple[str, str]], cited: list[int], tag: str
) -> None:
    checked = claim(tag, item, history)
    titles = [FILMS.attributes.titles[each] for each in cited]
    said = f"Fits {checked.tag.name}" + "".join(f", {name}" for _, name in named)
    text = said + "".join(f', "{title}"' for title in titles) + "."
    sources = {item, *(each for each in cited if each in history)}
    true = {(each.kind, each.name) for source in sources for each in FILMS.attributes.of(source)}
    known = {FILMS.attributes.titles[each] for each in {item, *history}}
    said_by_tag = {(part.kind, part.name) for part in checked.tag.parts if part.kind != "phrase"}
    if fits(checked.tag, checked.item.parts):
        named, said_by_tag = [each for each in named if each[1] != checked.tag.name], set()
    expected = set(titles) <= known and said_by_tag.union(named) <= true
    is_factual = "factual" not in RUBRIC.broken(text, checked)
    assert is_factual == expected


def test_the_rules_keep_the_rubric() -> None:
    for text in ("1980s Sci-Fi", "Romance", "star harbor", "Tall Films Action", "androids Sci-Fi"):
        tag = FILMS.vocabulary.parse(text)
        assert tag is not None
        claims = [claim(text, item) for item in range(36) if fits(tag, FILMS.parts.of(item))]
        for written, about in zip(RULES.explain(claims), claims, strict=True):
            assert RUBRIC.broken(written, about) == []
