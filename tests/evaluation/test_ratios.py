"""Rates of groups of users against numbers worked out by hand, against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recsys.evaluation.ratios import UserRatio, ratio_difference


def test_a_ratio_and_its_variance_by_hand() -> None:
    # Clicks 1, 0, 2 of lists 2, 1, 3: R = 3/6. Mean of lists 2; influences (1-1)/2, (0-.5)/2, (2-1.5)/2 = 0, -1/4, 1/4.
    # Their sum of squares is 1/8, by n-1 = 2 it is 1/16, by n = 3 it is 1/48.
    found = UserRatio.of([1, 0, 2], [2, 1, 3])
    assert (found.value, found.num_users) == (0.5, 3)
    assert found.variance == pytest.approx(1 / 48, rel=1e-12)


def test_a_difference_and_its_interval_by_hand() -> None:
    # Treatment: as above, .5 and 1/48. Control: clicks 1, 0 of lists 2, 2: R = 1/4, influences (1-.5)/2 = 1/4 and -1/4,
    # 1/8 by 1 by 2 = 1/16. Variance of the difference 1/48 + 3/48 = 1/12.
    # Degrees of freedom (1/12)^2 / ((1/48)^2/2 + (3/48)^2/1) = 16 / (1/2 + 9) = 32/19; t(.975, 32/19) = 5.17623.
    difference = ratio_difference(UserRatio.of([1, 0, 2], [2, 1, 3]), UserRatio.of([1, 0], [2, 2]))
    assert difference is not None
    margin = 1.4942494  # 5.17623 by the root of 1/12
    assert difference.value == 0.25
    assert difference.high - difference.value == pytest.approx(margin, rel=1e-6)
    assert difference.value - difference.low == pytest.approx(margin, rel=1e-6)


def test_with_one_list_a_user_it_is_welchs_interval_of_two_means() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(1, 2, 30), random.normal(0.5, 1, 50)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    found = ratio_difference(UserRatio.of(first, np.ones(30)), UserRatio.of(second, np.ones(50)), confidence=0.9)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_intervals_hold_what_they_promise_where_lists_of_one_user_are_alike() -> None:
    """Users click always or never, and those with more lists click more: a test over lists would be wrong."""
    random = np.random.default_rng(1)

    def group(size: int) -> UserRatio:
        lists = random.integers(1, 12, size)
        return UserRatio.of(lists * (random.random(size) < lists / 20), lists)

    rounds, held = 1000, 0
    for _ in range(rounds):
        found = ratio_difference(group(120), group(200))
        assert found is not None
        held += found.low <= 0 <= found.high
    assert 0.93 < held / rounds < 0.97


def test_who_was_shown_nothing_does_not_move_a_ratio_but_is_one_of_the_users() -> None:
    # All who saw a list took from half of what they saw: no spread at all.
    assert UserRatio.of([1, 0, 1], [2, 0, 2]) == UserRatio(value=0.5, variance=0.0, num_users=3)
    # R = 3/4, mean of lists 4/3; influences (2 - 1.5, 0, 1 - 1.5) * 3/4 = 3/8, 0, -3/8.
    found = UserRatio.of([2, 0, 1], [2, 0, 2])
    assert found.value == 0.75
    assert found.variance == pytest.approx(2 * (3 / 8) ** 2 / 2 / 3, rel=1e-12)


def test_nothing_is_said_where_nothing_can_be() -> None:
    some = UserRatio.of([1, 0, 2], [2, 1, 3])
    assert ratio_difference(some, UserRatio.of([1], [2])) is None
    assert ratio_difference(UserRatio.of([0, 0], [1, 2]), UserRatio.of([0, 0], [1, 2])) is None
    for above, below in [([], []), ([1], [1, 2]), ([0], [0]), ([1, 1], [2, -1])]:
        with pytest.raises(ValueError, match="denominators"):
            UserRatio.of(above, below)
