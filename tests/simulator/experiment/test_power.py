"""Sizes of tests against the textbook formula, and against how often a test of that size sees the effect."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.simulator.experiment.effects import independent_effect
from recsys.simulator.experiment.power import days_needed, detectable_difference, users_per_arm


def test_the_size_of_a_test_by_hand() -> None:
    # (1.959964 + .841621)^2 = 7.848880; 2 * 7.848880 / .1^2 = 1569.8
    assert users_per_arm(0.1, 1.0) == 1570
    assert users_per_arm(-0.1, 1.0) == 1570
    assert users_per_arm(0.1, 1.0, correlation=0.5) == 1178  # 1569.8 * .75 = 1177.3
    assert users_per_arm(100, 1.0) == 2
    assert detectable_difference(1569.776, 1.0) == pytest.approx(0.1, rel=1e-6)
    assert days_needed(1570, 1000, 0.5) == pytest.approx(6.28)


def test_a_test_of_that_size_sees_the_effect_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    n = users_per_arm(0.4, 1.0, power=0.8)
    seen = [independent_effect(random.normal(size=n), random.normal(0.4, 1, n)).p_value < 0.05 for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.035)


def test_impossible_sizes_name_the_field() -> None:
    for message, call in [
        ("difference", lambda: users_per_arm(0, 1)),
        ("variance", lambda: users_per_arm(1, -1)),
        ("alpha", lambda: users_per_arm(1, 1, alpha=1)),
        ("power", lambda: users_per_arm(1, 1, power=0)),
        ("correlation", lambda: users_per_arm(1, 1, correlation=1)),
        ("users per arm", lambda: detectable_difference(1, 1)),
        ("daily users", lambda: days_needed(10, 0)),
        ("share", lambda: days_needed(10, 10, 2)),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
