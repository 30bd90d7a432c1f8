"""Exact, prefix, rank and future: golden values, and nothing for what is not there."""

from __future__ import annotations

import pytest
import torch

from recsys.alignment.rewards.exact import ExactReward
from recsys.alignment.rewards.future import FutureReward
from recsys.alignment.rewards.prefix import PrefixReward
from recsys.alignment.rewards.rank import RankReward
from tests.alignment.rewards.worlds import context, rollouts

# Item 0 is the target; items 1..5 share 4 (all but the ordinal), 3, 2, 1 and 0 semantic codes with it.
GREAM_CODES = [
    [0, 0, 0, 0, 0],
    [0, 0, 0, 0, 1],
    [0, 0, 0, 1, 0],
    [0, 0, 1, 0, 0],
    [0, 1, 0, 0, 0],
    [1, 0, 0, 0, 0],
]
MINI_ONE_REC = [
    0.16377, 0.10333, 0.08189, 0.07053, 0.06336, 0.05834, 0.05459, 0.05166,
    0.04930, 0.04734, 0.04568, 0.04426, 0.04302, 0.04192, 0.04094, 0.04007,
]  # fmt: skip


def test_exact_is_one_for_the_next_item_only():
    values = ExactReward()(rollouts([[2, 1, -1], [1, 2, 0]], [[1], [-1]]))
    assert values.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_prefix_gives_the_table_of_gream():
    reward = PrefixReward(context(GREAM_CODES, ordinal=True))
    values = reward(rollouts([[5, 4, 3, 2, 1, 0, -1]], [[0]]))
    torch.testing.assert_close(values, torch.tensor([[0, 0.5, 0.5**0.5, 0.75**0.5, 0.95, 1, 0]]), atol=1e-6, rtol=0)


def test_prefix_without_an_ordinal_level_counts_every_level():
    reward = PrefixReward(context(GREAM_CODES))
    values = reward(rollouts([[1, 0]], [[0]]))
    torch.testing.assert_close(values, torch.tensor([[0.8**0.5, 1.0]]))


def test_prefix_of_codes_that_are_a_set_counts_equal_codes_wherever_they_stand():
    reward = PrefixReward(context([[0, 0], [1, 0], [1, 1]], ordered=False), exponent=1.0)
    assert reward(rollouts([[1, 2]], [[0]])).tolist() == [[0.5, 0]]


def test_prefix_is_zero_where_the_next_item_is_unknown():
    reward = PrefixReward(context(GREAM_CODES, ordinal=True))
    assert reward(rollouts([[5, 0]], [[-1]])).tolist() == [[0, 0]]
    assert reward(rollouts([[5, 0]], [[]])).tolist() == [[0, 0]]


@pytest.mark.parametrize("place", [0, 1, 15])
def test_rank_gives_misses_the_penalties_of_minionerec_and_the_hit_none(place: int):
    items = list(range(1, 17))
    items[place] = 0
    expected = -torch.tensor([MINI_ONE_REC])
    expected[0, place] = 0
    torch.testing.assert_close(RankReward()(rollouts([items], [[0]])), expected, atol=1e-5, rtol=0)


def test_rank_of_a_group_without_a_hit_is_exactly_zero():
    values = RankReward()(rollouts([[1, 2, 3], [1, 0, -1]], [[0], [0]]))
    assert values[0].tolist() == [0, 0, 0]
    assert values[1, 0] < 0
    assert values[1, 1:].tolist() == [0, 0]


def test_future_weighs_the_next_items_with_falling_weights():
    reward = FutureReward(ExactReward(), steps=3, decay=0.7)
    weights = torch.tensor([1, 0.7, 0.49]) / 2.19
    values = reward(rollouts([[1, 2, 3, 4]], [[1, 2, 3, 4]]))
    torch.testing.assert_close(values, torch.tensor([[*weights.tolist(), 0]]))


def test_future_leaves_out_what_lies_beyond_the_end():
    reward = FutureReward(ExactReward(), steps=3, decay=0.7)
    values = reward(rollouts([[1, 2], [1, 2], [1, 2]], [[1, 2, -1], [2, -1, -1], [-1, -1, -1]]))
    torch.testing.assert_close(values, torch.tensor([[1 / 1.7, 0.7 / 1.7], [0, 1], [0, 0]]))


def test_future_by_maximum_does_not_average_intents():
    reward = FutureReward(ExactReward(), steps=2, decay=0.5, reduce="max")
    assert reward(rollouts([[1, 2, 3, -1]], [[1, 2]])).tolist() == [[1, 0.5, 0, 0]]
    # A later penalty does not hide behind an item that is not there.
    penalty = FutureReward(RankReward(), steps=2, reduce="max")
    torch.testing.assert_close(
        penalty(rollouts([[3, 1]], [[1, -1]])), RankReward()(rollouts([[3, 1]], [[1]])), atol=0, rtol=0
    )


def test_future_of_one_step_is_the_reward_itself():
    inner = PrefixReward(context(GREAM_CODES, ordinal=True))
    batch = rollouts([[5, 4, 3, 2, 1, 0]], [[0, 5]])
    torch.testing.assert_close(FutureReward(inner, steps=1)(batch), inner(batch))


def test_exact_hits_stay_those_of_the_next_item_whatever_the_future():
    batch = rollouts([[2, 1]], [[1, 2]])
    assert FutureReward(ExactReward(), steps=2)(batch)[0, 0] > 0
    assert batch.hits.tolist() == [[False, True]]
