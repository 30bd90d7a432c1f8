"""Interleaved lists: what they hold, whom they credit, and that the better ranker wins."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.simulator.experiment.interleaving import Interleaved, preference_of_users, probabilistic, team_draft

MERGES = pytest.mark.parametrize("merge", [team_draft, probabilistic])


def test_teams_take_turns_and_their_best_items() -> None:
    first, second = np.array([[1, 2, 3, 4]]), np.array([[2, 1, 5, 6]])
    for seed in range(10):
        found = team_draft(first, second, 4, np.random.default_rng(seed))
        assert set(found.items[0, :2].tolist()) == {1, 2}, "both begin with their best item"
        for pair in (found.credit[0, :2], found.credit[0, 2:]):
            assert pair.sum() == 1, "one place each in every round"
        assert set(found.items[0, 2:].tolist()) == {3, 5}


@MERGES
def test_no_item_stands_twice_and_short_lists_end_with_nothing(merge) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(0)
    first = np.stack([random.permutation(8)[:5] for _ in range(200)])
    second = np.stack([random.permutation(8)[:5] for _ in range(200)])
    second[:, 3:] = -1
    found = merge(first, second, 8, random)
    for row, (one, two) in zip(found.items, zip(first, second, strict=True), strict=True):
        union = set(one) | set(two) - {-1}
        kept = row[row >= 0].tolist()
        assert len(kept) == len(set(kept)) == len(union)
        assert set(kept) == union
        assert (row[len(kept) :] == -1).all()
    assert ((found.credit >= 0) & (found.credit <= 1)).all()
    empty = merge(np.full((1, 2), -1), np.full((1, 2), -1), 2, random)
    assert (empty.items == -1).all()


def test_credit_is_the_posterior_of_who_drew_the_item() -> None:
    # First place: ranker one draws its item with 1/(1 + 1/8 + 1/27), ranker two, who has it third, with (1/27) of that.
    first, second = np.array([[7, 8, 9]]), np.array([[8, 9, 7]])
    for seed in range(20):
        found = probabilistic(first, second, 3, np.random.default_rng(seed))
        if found.items[0, 0] == 7:
            assert found.credit[0, 0] == pytest.approx(1 / (1 + 1 / 27), rel=1e-12)
            return
    raise AssertionError("7 never came first")


def test_items_are_drawn_by_their_rank() -> None:
    first = second = np.tile([5, 6, 7], (20_000, 1))
    top = probabilistic(first, second, 1, np.random.default_rng(1)).items[:, 0]
    weights = np.array([1, 1 / 8, 1 / 27])
    assert np.bincount(top - 5) / len(top) == pytest.approx(weights / weights.sum(), abs=0.01)


@MERGES
def test_rankers_that_are_the_same_win_equally_often(merge) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(2)
    lists = np.argsort(random.random((40_000, 20)), axis=1)[:, :10]
    found = merge(lists, lists, 10, random)
    target = lists[np.arange(len(lists)), random.integers(0, 10, len(lists))]
    preference = found.preference(found.items == target[:, None])
    if merge is probabilistic:
        assert (preference == 0).all(), "the posterior of two equal rankers is even"
    else:
        assert (preference > 0).mean() == pytest.approx(0.5, abs=0.01)


@MERGES
def test_a_ranker_that_moves_the_right_item_up_wins(merge) -> None:  # type: ignore[no-untyped-def]
    """200 requests of as many users, of whom 40 % take the right item if they are shown it; 100 runs."""
    won = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        worse = np.argsort(random.random((200, 20)), axis=1)[:, :10]
        target = worse[np.arange(200), random.integers(5, 10, 200)]
        others = worse[worse != target[:, None]].reshape(200, 9)
        better = np.concatenate([target[:, None], others], axis=1)
        found = merge(better, worse, 5, random)
        taken = (found.items == target[:, None]) & (random.random((200, 1)) < 0.4)
        won += found.preference(taken).sum() > 0
    assert won > 95


def test_users_and_not_lists_are_counted() -> None:
    users = ["a", "a", "a", "b", "c", "d"]
    found = preference_of_users(users, [1, 1, -1, 1, -1, 0])
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.share == pytest.approx(2 / 3)
    assert found.p_value == 1.0
    assert found.difference.value == pytest.approx((1 / 3 + 1 - 1 + 0) / 4)
    assert preference_of_users([str(user) for user in range(20)], np.ones(20)).p_value == pytest.approx(2 / 2**20)
    none = preference_of_users(["a", "b"], [0, 0])
    assert (none.share, none.p_value) == (0.5, 1.0)
    with pytest.raises(ValueError, match="two or more users"):
        preference_of_users(["a", "a"], [1, 1])


def test_nothing_is_credited_for_an_empty_place() -> None:
    lists = Interleaved(items=np.array([[3, -1]]), credit=np.array([[1.0, 0.0]]))
    assert lists.preference(np.array([[True, True]])).tolist() == [1.0]
