"""Sample ratios against published numbers, against scipy, and against simulated looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recsys.simulator.experiment.sample_ratio import MISMATCH, sample_ratio_p_value, sequential_sample_ratio


def test_a_sample_ratio_mismatch_is_found_and_chance_is_not() -> None:
    # chi-square 2.0 with one degree of freedom
    assert sample_ratio_p_value({"a": 5050, "b": 4950}, {"a": 1, "b": 1}) == pytest.approx(0.317311, abs=1e-6)
    assert sample_ratio_p_value({"a": 5200, "b": 4800}, {"a": 1, "b": 1}) < 0.001
    for observed, shares in [
        ({"a": 1}, {"a": 1}),
        ({"a": 1, "b": 1}, {"a": 1, "c": 1}),
        ({"a": 0, "b": 0}, {"a": 1, "b": 1}),
    ]:
        with pytest.raises(ValueError, match="two or more arms"):
            sample_ratio_p_value(observed, shares)


def test_the_published_mismatch_raises_the_alarm() -> None:
    observed = {"a": 50_650, "b": 49_350}
    p_value = sample_ratio_p_value(observed, {"a": 1, "b": 1})
    assert p_value == pytest.approx(3.94e-5, rel=1e-3)
    assert stats.chi2.isf(p_value, 1) == pytest.approx(16.9, rel=1e-9)
    assert p_value < MISMATCH


def test_the_factor_of_a_few_counts_by_hand() -> None:
    # Prior (1, 1), counts (2, 0): the marginal likelihood is 1/2 * 2/3 = 1/3, that of equal shares 1/4. Factor 4/3.
    # Then (2, 2): 1/2 * 2/3 * 1/4 * 2/5 = 1/30 against 1/16: less evidence, but the least p-value stays.
    found = sequential_sample_ratio([[2, 0], [2, 2]], [1, 1], concentration=2)
    assert found.tolist() == pytest.approx([3 / 4, 3 / 4], rel=1e-12)
    assert sequential_sample_ratio([[1, 1]], [3, 3], concentration=2).tolist() == [1.0], "1/6 against 1/4"


def test_looking_often_raises_few_alarms_and_finds_a_mismatch() -> None:
    random = np.random.default_rng(0)
    alarms = found = 0
    for _ in range(300):
        first = random.binomial(500, 0.5, 40).cumsum()
        alarms += sequential_sample_ratio(np.stack([first, np.arange(1, 41) * 500 - first], 1), [1, 1])[-1] < 0.05
        skewed = random.binomial(500, 0.53, 40).cumsum()
        found += sequential_sample_ratio(np.stack([skewed, np.arange(1, 41) * 500 - skewed], 1), [1, 1])[-1] < 0.05
    assert alarms / 300 <= 0.05
    assert found / 300 > 0.95


def test_what_cannot_be_counts_is_refused() -> None:
    for counts, shares, message in [
        ([1, 2], [1, 1], "looks, arms"),
        ([[1, 2]], [1, 0], "above 0"),
        ([[1, 2], [2, 1]], [1, 1], "they fall"),
    ]:
        with pytest.raises(ValueError, match=message):
            sequential_sample_ratio(counts, shares)
