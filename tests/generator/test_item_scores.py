"""Scores of given items: what the path that training uses says of them, whatever the shape and the batch."""

from __future__ import annotations

import numpy as np
import pytest
from scored_catalogue import score_catalogue

from recsys.data import Sequences
from recsys.generator import GenerativeRecommender

HISTORIES = [np.array([3, 1, 4, 1, 5]), np.array([9]), np.zeros(0, dtype=np.int64), np.array([2, 6])]


@pytest.fixture(params=["nested", "flat", "any_order"])
def recommender(make_recommender, request: pytest.FixtureRequest) -> GenerativeRecommender:
    return make_recommender(request.param, num_items=60, sizes=(4, 8, 8))


def test_given_items_have_the_scores_of_scoring_the_whole_catalogue(recommender: GenerativeRecommender) -> None:
    random = np.random.default_rng(0)
    items = [random.choice(60, size, replace=False) for size in (7, 60, 0, 3)]
    expected = [score_catalogue(recommender, history) for history in HISTORIES]
    for batch_size in (64, 2):
        found = recommender.score(Sequences.from_lists(HISTORIES), items, batch_size=batch_size)
        for scores, row, twin in zip(found, items, expected, strict=True):
            np.testing.assert_allclose(scores, twin[row], atol=2e-4)
    assert np.exp(found[1]).sum() == pytest.approx(1, abs=1e-4)


def test_a_search_gives_its_items_the_same_scores(recommender: GenerativeRecommender) -> None:
    histories = Sequences.from_lists(HISTORIES)
    found = recommender.recommend(histories, 5)
    scores = recommender.score(histories, list(found.items), sessions=["a", None, "b", "a"])
    np.testing.assert_allclose(np.stack(scores), found.scores, atol=2e-4)


def test_the_codes_of_an_item_make_its_score(recommender: GenerativeRecommender) -> None:
    histories, items = Sequences.from_lists(HISTORIES), [np.arange(60)] * 3 + [np.zeros(0, dtype=np.int64)]
    scores = recommender.score(histories, items)
    for row, codes in zip(scores, recommender.score_codes(histories, items), strict=True):
        assert codes.shape == (len(row), 3)
        assert (codes <= 0).all()
        np.testing.assert_allclose(codes.sum(axis=1), row, atol=1e-6)


def test_codes_that_items_share_are_as_likely(make_recommender) -> None:
    recommender = make_recommender("nested", num_items=60, sizes=(4, 8, 8))
    (found,) = recommender.score_codes(Sequences.from_lists(HISTORIES[:1]), [np.arange(60)])
    first = recommender.codes[:, 0]
    for code in np.unique(first):
        np.testing.assert_allclose(found[first == code, 0], found[first == code, 0][0], atol=1e-5)
    assert np.exp(found[np.unique(first, return_index=True)[1], 0]).sum() == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_scored_is_refused(recommender: GenerativeRecommender) -> None:
    histories = Sequences.from_lists(HISTORIES[:1])
    for items in ([], [np.array([60])], [np.array([-1])]):
        with pytest.raises(ValueError, match="items"):
            recommender.score(histories, items)


def test_another_width_of_the_search_shares_the_model(recommender: GenerativeRecommender) -> None:
    narrow = recommender.with_beams(2)
    assert (narrow.beams, narrow.nested_up_to) == (2, min(2, recommender.nested_up_to))
    assert narrow.model is recommender.model
    assert narrow.sessions is recommender.sessions
    histories = Sequences.from_lists(HISTORIES)
    np.testing.assert_array_equal(
        narrow.recommend(histories, 1).items, recommender.recommend(histories, 1, beams=2).items
    )
