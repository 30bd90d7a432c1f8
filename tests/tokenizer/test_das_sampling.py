"""What DAS draws from training sequences, checked by hand on three users and five items."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data import Sequences
from recsys.errors import DataError
from recsys.tokenizer.das.sampling import Behaviour

# Item 4 is nobody's; user 2 has clicked item 3 twice and shares it with nobody.
TRAIN = Sequences.from_lists([[0, 1, 2], [1, 0], [3, 3]])


def test_clicks_are_the_distinct_pairs_of_the_training_sequences_and_no_others() -> None:
    behaviour = Behaviour(TRAIN, 5, window=1)
    assert behaviour.clicks.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 3]]
    assert behaviour.item_clicks.tolist() == [2, 2, 1, 2, 0]
    np.testing.assert_allclose(behaviour.user_frequency, [3 / 6, 2 / 6, 1 / 6])
    np.testing.assert_allclose(behaviour.item_frequency, [2 / 6, 2 / 6, 1 / 6, 1 / 6, 0])


def test_item_pairs_lie_within_the_window_and_are_drawn_by_count_over_root_degrees() -> None:
    behaviour = Behaviour(TRAIN, 5, window=1)
    drawn = behaviour.draw_item_pairs(60_000, np.random.default_rng(0))
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert pairs.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    # Counts: 0-1 twice, 1-2 once; degrees 2, 3, 1.
    weights = np.array([2 / np.sqrt(6), 2 / np.sqrt(6), 1 / np.sqrt(3), 1 / np.sqrt(3)])
    np.testing.assert_allclose(counts / 60_000, weights / weights.sum(), atol=0.01)
    marginal = [weights[0], weights[1] + weights[2], weights[3], 0, 0]
    np.testing.assert_allclose(behaviour.item_pair_frequency, np.array(marginal) / weights.sum())


def test_a_wider_window_adds_the_pair_two_clicks_apart() -> None:
    near, far = (Behaviour(TRAIN, 5, window).items_together(np.array([0]), np.array([2])) for window in (1, 2))
    assert not near.any()
    assert far.all()


def test_user_pairs_share_an_item_and_differ() -> None:
    train = Sequences.from_lists([[0], [0], [0], [1], [1], [2]])
    behaviour = Behaviour(train, 3, window=1)
    pairs, counts = np.unique(behaviour.draw_user_pairs(50_000, np.random.default_rng(0)), axis=0, return_counts=True)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [3, 4], [4, 3]]
    # Five clicks have company, each is drawn as often; a fan of item 0 then has two others to choose from.
    np.testing.assert_allclose(counts / 50_000, [0.1] * 6 + [0.2] * 2, atol=0.01)
    np.testing.assert_allclose(behaviour.user_pair_frequency, [0.2] * 5 + [0.0])


def test_known_pairs_and_equal_ids_are_told_apart_from_negatives() -> None:
    behaviour = Behaviour(TRAIN, 5, window=1)
    users, items = np.array([0, 2]), np.array([0, 3, 4])
    assert behaviour.clicked(users, items).tolist() == [[True, False, False], [False, True, False]]
    assert behaviour.items_together(np.array([0, 4]), np.array([0, 1, 2, 4])).tolist() == [
        [True, True, False, False],
        [False, False, False, True],
    ]
    assert behaviour.users_together(np.array([0]), np.array([0, 1, 2])).tolist() == [[True, True, False]]


def test_drawn_negatives_say_whether_they_really_are() -> None:
    behaviour = Behaviour(TRAIN, 5, window=1)
    users = np.zeros(2000, dtype=np.int64)
    items, is_negative = behaviour.draw_unclicked(users, np.random.default_rng(0))
    assert is_negative.tolist() == [item in (3, 4) for item in items]
    np.testing.assert_allclose(np.bincount(items) / 2000, 0.2, atol=0.03)


def test_a_users_popularity_is_the_mean_log_count_of_the_items() -> None:
    expected = [(2 * np.log(3) + np.log(2)) / 3, np.log(3), np.log(3)]
    np.testing.assert_allclose(Behaviour(TRAIN, 5, window=1).user_popularity(), expected)


def test_sequences_of_one_click_have_no_pairs() -> None:
    behaviour = Behaviour(Sequences.from_lists([[0], [1]]), 2, window=3)
    assert not behaviour.has_item_pairs
    assert not behaviour.has_user_pairs


@pytest.mark.parametrize(("train", "message"), [([[]], "no interaction"), ([[0, 5]], "item 5.*5 items")])
def test_sequences_that_fit_no_catalogue_are_refused(train: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Behaviour(Sequences.from_lists(train), 5, window=1)
