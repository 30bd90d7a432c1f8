"""Sizes of tests against the textbook formula, and against how often a test of that size sees the effect."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recsys.errors import ConfigError
from recsys.simulator.experiment.effects import independent_effect
from recsys.simulator.experiment.power import (
    days_needed,
    detectable_difference,
    detectable_errors,
    power_of,
    users_per_arm,
)


def test_the_size_of_a_test_by_hand() -> None:
    # (1.959964 + .841621)^2 = 7.848880; 2 * 7.848880 / .1^2 = 1569.8
    assert users_per_arm(0.1, 1.0) == 1570
    assert users_per_arm(-0.1, 1.0) == 1570
    assert users_per_arm(0.1, 1.0, correlation=0.5) == 1178  # 1569.8 * .75 = 1177.3
    assert users_per_arm(100, 1.0) == 2
    assert detectable_difference(1569.776, 1.0) == pytest.approx(0.1, rel=1e-5)
    assert days_needed(1570, 1000, 0.5) == pytest.approx(6.28)


def test_a_test_of_that_size_sees_the_effect_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    n = users_per_arm(0.4, 1.0, power=0.8)
    seen = [independent_effect(random.normal(size=n), random.normal(0.4, 1, n)).p_value < 0.05 for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.035)


def test_power_tends_to_alpha_as_the_difference_tends_to_zero() -> None:
    for alpha in (0.001, 0.05, 0.3):
        assert power_of(0, 100, 1.0, alpha=alpha) == pytest.approx(alpha, rel=1e-12)
        found = [power_of(difference, 100, 1.0, alpha=alpha) for difference in (1e-6, 0.01, 0.1, 0.3, 1.0, 5.0)]
        assert found[0] == pytest.approx(alpha, rel=1e-6)
        assert all(low < high for low, high in zip([alpha * (1 - 1e-9), *found], found, strict=False))
        assert found[-1] == pytest.approx(1.0)
    assert power_of(-0.3, 100, 1.0) == power_of(0.3, 100, 1.0)
    assert power_of(0.1, 100, 0.0) == 1.0
    assert power_of(0.0, 100, 0.0) == 0.05
    # Whatever power is asked for, the size gives it, also just above alpha, where the textbook's formula gives less.
    for power in (0.051, 0.06, 0.2, 0.5, 0.8, 0.99):
        difference = detectable_difference(1000, 2.0, power=power, correlation=0.5)
        assert power_of(difference, 1000, 2.0, correlation=0.5) == pytest.approx(power, rel=1e-9)
    for power in (0.5, 0.8, 0.9):
        textbook = stats.norm.ppf(0.975) + stats.norm.ppf(power)
        assert detectable_errors(0.05, power) == pytest.approx(textbook, rel=2e-4 if power == 0.5 else 2e-6)


def test_a_test_against_nothing_rejects_as_often_as_its_power_says() -> None:
    random = np.random.default_rng(3)
    first, second = random.normal(size=(2, 4000, 50))
    rejected = [independent_effect(a, b).p_value < 0.05 for a, b in zip(first, second, strict=True)]
    assert np.mean(rejected) == pytest.approx(power_of(0, 50, 1.0), abs=0.01)


def test_impossible_sizes_name_the_field() -> None:
    for message, call in [
        ("difference", lambda: users_per_arm(0, 1)),
        ("variance", lambda: users_per_arm(1, -1)),
        ("alpha", lambda: users_per_arm(1, 1, alpha=1)),
        ("power", lambda: users_per_arm(1, 1, power=0)),
        (r"power must lie above alpha \(0.05\)", lambda: users_per_arm(1, 1, power=0.02)),
        (r"power must lie above alpha \(0.3\)", lambda: users_per_arm(1, 1, alpha=0.3, power=0.3)),
        ("power", lambda: users_per_arm(1, 1, power=1)),
        ("alpha", lambda: power_of(1, 10, 1, alpha=0)),
        ("difference", lambda: power_of(float("nan"), 10, 1)),
        ("users per arm", lambda: power_of(1, 1, 1)),
        ("correlation", lambda: users_per_arm(1, 1, correlation=1)),
        ("users per arm", lambda: detectable_difference(1, 1)),
        ("daily users", lambda: days_needed(10, 0)),
        ("share", lambda: days_needed(10, 10, 2)),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
