from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric

RNG = np.random.default_rng(3)


def mean_of(values: np.ndarray) -> CaseMetric:
    return CaseMetric(numerator=values.astype(float), denominator=np.ones(len(values)))


def bootstrap(users: np.ndarray, seed: int = 0) -> UserBootstrap:
    return UserBootstrap(users, n_resamples=2000, seed=seed, confidence=0.95)


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = RNG.random(400)
    (interval,) = bootstrap(np.arange(400)).intervals([mean_of(values)])
    margin = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert interval.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_resampled_means_equal_a_plain_loop_over_drawn_users() -> None:
    values = np.array([0.0, 1.0, 5.0])
    users = UserBootstrap(np.array([4, 9, 2]), n_resamples=7, seed=11, confidence=0.9)
    # Groups are users in ascending order: 2, 4, 9.
    by_user = np.array([5.0, 0.0, 1.0])
    drawn = np.random.default_rng(11).integers(0, 3, size=(7, 3))
    expected = np.quantile([by_user[row].mean() for row in drawn], [0.05, 0.95])
    (interval,) = users.intervals([mean_of(values)])
    assert [interval.low, interval.high] == pytest.approx(expected.tolist())


def test_a_constant_has_no_uncertainty_and_the_same_seed_the_same_interval() -> None:
    users = np.arange(50)
    (constant,) = bootstrap(users).intervals([mean_of(np.full(50, 0.25))])
    assert (constant.value, constant.low, constant.high) == (0.25, 0.25, 0.25)
    metric = mean_of(RNG.random(50))
    assert bootstrap(users).intervals([metric]) == bootstrap(users).intervals([metric])
    assert bootstrap(users).intervals([metric]) != bootstrap(users, seed=1).intervals([metric])


def test_cases_of_one_user_are_drawn_together() -> None:
    # 100 cases, but only 4 users who always agree with themselves: the interval is that of 4 draws, not of 100.
    users = np.repeat(np.arange(4), 25)
    values = np.repeat([0.0, 0.0, 1.0, 1.0], 25)
    (together,) = bootstrap(users).intervals([mean_of(values)])
    (apart,) = bootstrap(np.arange(100)).intervals([mean_of(values)])
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_a_difference_is_paired() -> None:
    # Two models that differ by the same amount on every user: their intervals overlap, their difference is certain.
    ours = RNG.random(200)
    theirs = ours - 0.01
    (difference,) = bootstrap(np.arange(200)).differences([(mean_of(ours), mean_of(theirs))])
    assert [difference.low, difference.value, difference.high] == pytest.approx([0.01] * 3)


def test_a_ratio_of_nothing_is_zero() -> None:
    empty = CaseMetric(numerator=np.zeros(5), denominator=np.zeros(5))
    (interval,) = bootstrap(np.arange(5)).intervals([empty])
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_studentized_limits_equal_a_plain_loop_over_drawn_users() -> None:
    numerator, denominator = RNG.exponential(size=30), RNG.random(30) + 0.5
    other = RNG.random(30)
    users = UserBootstrap(np.arange(30), n_resamples=200, seed=5, confidence=0.9)
    metrics = [CaseMetric(numerator=numerator, denominator=denominator), mean_of(other)]

    def value_and_error(rows: np.ndarray) -> tuple[float, float]:
        top, below, plain = numerator[rows], denominator[rows], other[rows]
        ratio = top.sum() / below.sum()
        moves = (top - ratio * below) / below.sum() + (plain - plain.mean()) / len(rows)
        return ratio + plain.mean(), float(np.sqrt((moves**2).sum()))

    value, error = value_and_error(np.arange(30))
    drawn = np.random.default_rng(5).integers(0, 30, size=(200, 30))
    resampled = [value_and_error(rows) for rows in drawn]
    steps = np.sort([(each - value) / own_error for each, own_error in resampled])
    (interval,) = users.studentized([metrics])
    assert interval.value == pytest.approx(value)
    assert interval.low == pytest.approx(value - steps[190] * error)
    assert interval.high == pytest.approx(value - steps[9] * error)
    assert users.studentized([]) == []


def test_studentized_limits_of_symmetric_values_are_those_of_percentiles_and_lean_where_values_are_skewed() -> None:
    values = RNG.random(400)
    (percentiles,) = bootstrap(np.arange(400)).intervals([mean_of(values)])
    (studentized,) = bootstrap(np.arange(400)).studentized([[mean_of(values)]])
    assert (studentized.low, studentized.high) == pytest.approx((percentiles.low, percentiles.high), abs=0.003)
    rare = (np.arange(400) % 80 == 0).astype(float) * 7
    (skewed,) = bootstrap(np.arange(400)).studentized([[mean_of(rare)]])
    assert skewed.high - skewed.value > 1.5 * (skewed.value - skewed.low)


def test_a_constant_is_exact_and_what_a_handful_of_rewards_leaves_open_is_infinite() -> None:
    constant, one = np.full(50, 0.1), np.eye(50)[0]
    exact, alone, single = bootstrap(np.arange(50)).studentized(
        [[mean_of(constant)], [mean_of(one)], [CaseMetric(numerator=one, denominator=one)]]
    )
    assert (exact.low, exact.high) == (exact.value, exact.value) == pytest.approx((0.1, 0.1))
    assert alone.high == np.inf
    assert -0.01 < alone.low < 0.02
    assert (single.low, single.value, single.high) == (-np.inf, 1, np.inf), "all that counts is of one user"


def test_exposure_interval_surrounds_its_value_although_resamples_cover_less() -> None:
    lists = RNG.integers(0, 300, size=(100, 10))
    intervals = bootstrap(np.arange(100)).exposure_intervals(lists, num_items=300)
    covered = len(np.unique(lists)) / 300
    assert intervals["coverage@10"].value == covered
    for interval in intervals.values():
        assert 0 <= interval.low < interval.value < interval.high <= 1
