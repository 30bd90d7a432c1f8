"""The order of batches: what each shard holds, and how the share of reasoning rises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from recsys.generator.lm.curriculum import Step, curriculum


def numbers(shard: list[Step], reasoning: bool) -> list[int]:
    return [step.number for step in shard if step.reasoning == reasoning]


@settings(deadline=None)
@given(num_alignment=st.integers(0, 80), num_reasoning=st.integers(0, 40), seed=st.integers(0, 9))
def test_alignment_is_taught_once_and_reasoning_once_a_shard(num_alignment: int, num_reasoning: int, seed: int) -> None:
    shards = curriculum(num_alignment, num_reasoning, seed=seed)
    assert len(shards) == 3
    assert sorted(number for shard in shards for number in numbers(shard, False)) == list(range(num_alignment))
    sizes = [len(numbers(shard, False)) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for shard in shards:
        assert sorted(numbers(shard, True)) == list(range(num_reasoning))


def test_the_order_follows_from_the_seed() -> None:
    assert curriculum(30, 6, seed=1) == curriculum(30, 6, seed=1)
    assert curriculum(30, 6, seed=1) != curriculum(30, 6, seed=2)
    first, second, _ = curriculum(30, 6, seed=1)
    assert numbers(first, True) != numbers(second, True)


def shares(shard: list[Step], slices: int = 10) -> list[float]:
    parts = np.array_split([step.reasoning for step in shard], slices)
    return [float(part.mean()) for part in parts]


@settings(max_examples=60)
@given(num_alignment=st.integers(3000, 6000), ratio=st.floats(0.5, 2.0), seed=st.integers(0, 1000))
def test_the_share_of_reasoning_rises_through_the_first_two_shards(num_alignment: int, ratio: float, seed: int) -> None:
    """G3 of the brief: Spearman's rho of the share by tenth is at least .9, where chance does not decide.

    Of fewer rows than some 50 a tenth, sampling noise alone puts neighbours in the wrong order.
    """
    first, second, _ = curriculum(num_alignment, round(ratio * num_alignment / 3), seed=seed)
    for shard in (first, second):
        assert spearmanr(range(10), shares(shard)).statistic >= 0.9


def test_in_the_last_shard_reasoning_is_spread_evenly() -> None:
    *_, third = curriculum(3000, 1000, seed=0)
    assert max(abs(share - 0.5) for share in shares(third)) < 0.15  # four standard deviations


@pytest.mark.parametrize("num_reasoning", [20, 300])
def test_three_quarters_come_on_the_way_at_the_probability_of_the_paper(num_reasoning: int) -> None:
    size, repeats = 50, 200
    after = np.zeros(size)
    for seed in range(repeats):
        place = -1
        for step in curriculum(3 * size, num_reasoning, seed=seed)[0]:
            place += not step.reasoning
            after[place] += step.reasoning
    expected = 1.5 * np.arange(size) / size * num_reasoning / size
    assert expected.sum() == pytest.approx(0.75 * num_reasoning, rel=0.03)
    # Each count is one of two neighbouring integers, so its standard deviation is at most .5.
    np.testing.assert_allclose(after[:-1] / repeats, expected[:-1], atol=4 * 0.5 / np.sqrt(repeats))
    # The last place has what is left over besides.
    assert after.sum() == repeats * num_reasoning


def test_without_alignment_or_reasoning_the_other_is_left() -> None:
    assert curriculum(0, 2, seed=0)[0] in (
        [Step(reasoning=True, number=0), Step(reasoning=True, number=1)],
        [Step(reasoning=True, number=1), Step(reasoning=True, number=0)],
    )
    assert [len(shard) for shard in curriculum(7, 0, seed=0)] == [3, 2, 2]
