"""Sequences against published numbers, the definition of their p-values, and tests that are peeked at."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from recsys.simulator.experiment.sequential import (
    always_valid_p_values,
    mixing_scale,
    msprt_likelihood_ratio,
    msprt_p_values,
    sequence_half_width,
)


def test_the_published_sequence() -> None:
    assert mixing_scale(0.05, 5000) == pytest.approx(0.0398400668, abs=5e-11)
    assert float(sequence_half_width(2000, 1.0)) == pytest.approx(0.0698498240, abs=5e-11)
    assert float(sequence_half_width(10_000, 1.0)) == pytest.approx(0.0306147722, abs=5e-11)
    assert stats.norm.ppf(0.975) / 2000**0.5 == pytest.approx(0.0438261, abs=5e-8), "of a fixed sample: narrower"


def test_the_published_likelihood_ratio() -> None:
    assert float(msprt_likelihood_ratio(5000, 0.06, 1.0, 0.01)) == pytest.approx(14.8481430146721, rel=1e-12)


def test_the_p_value_is_the_smallest_level_that_excludes_zero() -> None:
    """rho is fixed, so the level can be found by bisection over the half-width's own formula."""
    n, variance, difference = 3000.0, 2.0, 0.1
    rho = mixing_scale(0.05)
    spread = n * rho**2 + 1

    def excess(level: float) -> float:
        return (variance * 2 * spread * np.log(spread**0.5 / level)) ** 0.5 / (n * rho) - difference

    expected = optimize.brentq(excess, 1e-12, 1.0)
    found = always_valid_p_values([difference], [n], [variance])
    assert found[0] == pytest.approx(expected, rel=1e-6)
    at_edge = float(sequence_half_width(n, variance))
    assert always_valid_p_values([at_edge], [n], [variance])[0] == pytest.approx(0.05, rel=1e-9)


def test_p_values_never_rise() -> None:
    found = always_valid_p_values([0.2, 0.0, 0.01], [1000, 2000, 3000], [1, 1, 1])
    assert found[0] == found[1] == found[2] < 0.01
    ratios = msprt_likelihood_ratio(np.array([100, 500, 1000]), np.array([0.5, 0.1, 0.0]), 1.0, 0.01)
    p_values = msprt_p_values(ratios)
    assert (np.diff(p_values) <= 0).all()
    assert (p_values <= 1).all()


def test_exact_estimates_are_decided_at_once() -> None:
    assert always_valid_p_values([0.0, 0.0], [10, 20], [0, 0]).tolist() == [1.0, 1.0]
    assert always_valid_p_values([0.1], [10], [0]).tolist() == [0.0]


def test_peeking_fools_a_test_for_fixed_samples_and_not_the_sequence() -> None:
    """As published: nothing differs, 20 looks at 200 further users an arm, 2,000 runs: 26.0 and 1.4 %."""
    random = np.random.default_rng(0)
    looks, per_look, runs = 20, 200, 2000
    sums = random.normal(size=(2, runs, looks, per_look)).sum(axis=3).cumsum(axis=2)
    n = per_look * np.arange(1, looks + 1)
    differences = (sums[1] - sums[0]) / n
    naive = np.abs(differences) > stats.norm.ppf(0.975) * (2 / n) ** 0.5
    sequence = np.abs(differences) > sequence_half_width(2 * n, 4.0)  # squared error 2 / n, times 2 n users
    assert naive.any(axis=1).mean() == pytest.approx(0.26, abs=0.03)
    assert sequence.any(axis=1).mean() == pytest.approx(0.014, abs=0.01)
    sprt = msprt_likelihood_ratio(n, differences, 1.0, 0.01) >= 20
    assert sprt.any(axis=1).mean() < 0.05


def test_impossible_levels_are_refused() -> None:
    for alpha, users in ((0.0, 5000), (1.0, 5000), (0.05, 0)):
        with pytest.raises(ValueError, match="alpha"):
            mixing_scale(alpha, users)
