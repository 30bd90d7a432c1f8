"""Effects against published numbers, numbers worked out by hand, scipy, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recsys.errors import DataError
from recsys.evaluation.ratios import UserRatio, user_values
from recsys.simulator.experiment.cuped import adjust
from recsys.simulator.experiment.effects import independent_effect, paired_effect


def test_the_published_ratio_and_its_standard_error() -> None:
    found = UserRatio.of([3, 5, 2, 8], [10, 12, 8, 20])
    assert found.value == pytest.approx(0.36, rel=1e-12)
    # Influences (3-3.6, 5-4.32, 2-2.88, 8-7.2) / 12.5; their squares sum to 2.2368 / 156.25, by 3 and by 4.
    assert found.variance**0.5 == pytest.approx((2.2368 / 156.25 / 12) ** 0.5, rel=1e-12)
    assert found.variance**0.5 == pytest.approx(0.034539253, abs=5e-10)


def test_the_published_adjustment() -> None:
    found = adjust([[2, 3, 5, 4, 6, 8]], [[1, 2, 3, 4, 5, 6]])
    assert found.theta == pytest.approx(38 / 35, rel=1e-12)  # 1.085714
    assert found.theta == pytest.approx(1.085714, abs=5e-7)
    assert found.factor == pytest.approx(0.115918, abs=5e-7)
    rho = np.corrcoef([2, 3, 5, 4, 6, 8], [1, 2, 3, 4, 5, 6])[0, 1]
    assert found.factor == pytest.approx(1 - rho**2, rel=1e-12)
    assert found.groups[0].var() / np.var([2, 3, 5, 4, 6, 8]) == pytest.approx(found.factor, rel=1e-12)
    assert found.groups[0].mean() == pytest.approx(28 / 6, rel=1e-12), "the mean over all groups stays"


def test_different_users_are_compared_as_scipy_does() -> None:
    random = np.random.default_rng(0)
    control, treatment = random.normal(1, 2, 30), random.normal(1.5, 1, 50)
    expected = stats.ttest_ind(treatment, control, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    found = independent_effect(control, treatment)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=1e-9)
    assert found.num_users == 80


def test_a_relative_lift_and_its_error_are_those_of_the_delta_method() -> None:
    control, treatment = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, 6.0])
    # Means 2.5 and 4; variances of one user 5/3 and 4.
    expected = 4 / (2.5**2 * 3) + 4**2 * (5 / 3) / (2.5**4 * 4)
    found = independent_effect(control, treatment)
    assert found.lift is not None
    assert found.lift.value == pytest.approx(0.6, rel=1e-12)
    assert found.lift_error == pytest.approx(expected**0.5, rel=1e-12)
    half = (found.lift.high - found.lift.low) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, found.freedom) * expected**0.5, rel=1e-9)
    assert found.lift_bound(0.5) == pytest.approx(0.6, rel=1e-12)
    assert found.lift_bound(0.975) == pytest.approx(found.lift.low, rel=1e-9)


def test_the_same_users_are_compared_by_their_differences() -> None:
    random = np.random.default_rng(1)
    control = random.gamma(2, 1, 40)
    treatment = control * 1.1 + random.normal(0, 0.1, 40)
    found = paired_effect(control, treatment)
    assert found.p_value == pytest.approx(stats.ttest_rel(treatment, control).pvalue, rel=1e-9)
    assert found.num_users == 40
    # The lift's variance, with the covariance that the arms share.
    covariance = np.cov(control, treatment)
    mean, ratio = control.mean(), treatment.mean() / control.mean()
    expected = (covariance[1, 1] + ratio**2 * covariance[0, 0] - 2 * ratio * covariance[0, 1]) / mean**2 / 40
    assert found.lift_error == pytest.approx(expected**0.5, rel=1e-9)
    apart = independent_effect(control, treatment)
    assert found.standard_error < apart.standard_error / 5


def test_a_ratio_of_sums_is_compared_like_a_mean() -> None:
    control, treatment = user_values([3, 5, 2, 8], [10, 12, 8, 20]), user_values([1, 0, 2], [2, 1, 3])
    found = independent_effect(control, treatment)
    assert (found.control, found.treatment) == pytest.approx((0.36, 0.5), rel=1e-12)
    assert found.standard_error == pytest.approx((0.034539253**2 + 1 / 48) ** 0.5, rel=1e-7)


def test_users_who_are_all_alike_give_an_exact_answer() -> None:
    same = paired_effect([1, 2, 3], [1, 2, 3])
    assert (same.p_value, same.difference.low, same.difference.high) == (1.0, 0.0, 0.0)
    better = paired_effect([1, 2, 3], [2, 3, 4])
    assert (better.p_value, better.difference.low) == (0.0, 1.0)
    assert independent_effect([0, 0], [0, 0]).lift is None, "nothing is relative to 0"
    assert independent_effect([0, 0], [0, 0]).lift_bound(0.95) is None


@pytest.mark.parametrize(
    ("control", "treatment", "message"),
    [
        ([], [1, 2], "control has 0 users"),
        ([1, 2], [1], "treatment has 1 users"),
        ([1, 2, 3], [1, np.nan, np.inf], r"treatment has outcomes that are no finite numbers, in rows \[1, 2\]"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(control: list[float], treatment: list[float], message: str) -> None:
    for effect in (independent_effect, paired_effect):
        with pytest.raises(DataError, match=message):
            effect(control, treatment)
    with pytest.raises(DataError, match="same users; control has 2, treatment 3"):
        paired_effect([1, 2], [1, 2, 3])


def test_an_effect_of_the_arm_does_not_pass_for_one_of_the_covariate() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(2, 500))
    control, treatment = 2 * x[0] + random.normal(size=500), 2 * x[1] + 3 + random.normal(size=500)
    found = adjust([control, treatment], x)
    assert found.theta == pytest.approx(2, abs=0.15)
    assert found.factor == pytest.approx(1 / 5, abs=0.03)
    assert found.groups[1].mean() - found.groups[0].mean() == pytest.approx(3, abs=0.2)
    constant = adjust([control, treatment], np.ones((2, 500)))
    assert (constant.theta, constant.factor) == (0.0, 1.0)
    with pytest.raises(ValueError, match="the same users"):
        adjust([control], [x[0, :3]])


def _share(rounds: int, lift: float, seed: int) -> tuple[float, float]:
    """How often intervals hold the injected lift, and how often "nothing differs" is rejected."""
    random = np.random.default_rng(seed)
    held = rejected = 0
    for _ in range(rounds):
        rate = random.gamma(2, 1, (2, 300)) * np.array([[1.0], [1 + lift]])
        found = independent_effect(random.poisson(rate[0]), random.poisson(rate[1]))
        assert found.lift is not None
        held += found.lift.low <= lift <= found.lift.high
        rejected += found.p_value < 0.05
    return held / rounds, rejected / rounds


def test_intervals_hold_an_injected_lift_and_nothing_is_found_where_nothing_is() -> None:
    held, _ = _share(1000, 0.2, seed=3)
    assert 0.93 <= held <= 0.97
    held, rejected = _share(1000, 0.0, seed=4)
    assert 0.04 <= rejected <= 0.06
