from __future__ import annotations

import pytest
from film_tags import Films
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.profile.intents.config import InterestConfig
from recsys.profile.intents.mining import RuleMiner, best_tag
from recsys.profile.intents.tags import fits

FILMS = Films()
MINER = RuleMiner(FILMS.vocabulary, FILMS.parts, FILMS.attributes, InterestConfig())


def test_interests_are_what_comes_back_with_the_events_and_the_tags_that_follow() -> None:
    androids, scifi, *_ = MINER.mine([[0, 3, 5, 6, 10]])[0]
    assert androids.text == "Into androids: 2 of 5 choices."
    assert [tag.name for tag in androids.tags] == ["androids Action"]
    assert [(each.event, each.item_id) for each in androids.evidence] == [(2, "f5"), (3, "f6")]
    assert scifi.text == "Into Sci-Fi: 4 of 5 choices."
    assert [tag.name for tag in scifi.tags] == [
        "Tall Films Sci-Fi",
        "androids Sci-Fi",
        "Sci-Fi",
        "1990s Sci-Fi",
        "1980s Sci-Fi",
    ]


def test_what_was_chosen_of_late_counts_more() -> None:
    romance, comedy = [10, 11, 12], [15, 16, 17]
    assert "Comedy" in MINER.mine([romance + comedy])[0][0].tags[0].name
    assert "Romance" in MINER.mine([comedy + romance])[0][0].tags[0].name


def test_kinds_of_the_same_events_are_one_interest() -> None:
    # Robots, dawn, Action and Sci-Fi are all of these films.
    interests = MINER.mine([[8, 9]])[0]
    assert len({tuple(each.event for each in interest.evidence) for interest in interests}) == len(interests)


@pytest.mark.parametrize("history", [[], [-1, -1]])
def test_nothing_is_said_of_an_unknown_history(history: list[int]) -> None:
    assert MINER.mine([history]) == [[]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 35), max_size=15))
def test_every_interest_has_evidence_and_every_tag_is_good(history: list[int]) -> None:
    for interest in MINER.mine([history])[0]:
        assert interest.evidence
        assert interest.tags
        assert {tag for tag in interest.tags if FILMS.vocabulary.fault(tag) is not None} == set()
        for each in interest.evidence:
            assert each.item_id == FILMS.catalog.item_ids[history[each.event]]
        chosen = [FILMS.parts.of(item) for item in history if item >= 0]
        assert all(any(fits(tag, parts) for parts in chosen) for tag in interest.tags)


def test_an_item_is_explained_by_the_strongest_interest_that_it_fits() -> None:
    interests = MINER.mine([[0, 3, 5, 6, 10]])[0]
    named = {item: best_tag(interests, FILMS.parts.of(item)) for item in (7, 4, 11, 16)}
    assert {item: tag and tag.name for item, tag in named.items()} == {
        7: "androids Action",
        4: "Sci-Fi",
        11: "1990s Romance",
        16: None,
    }
