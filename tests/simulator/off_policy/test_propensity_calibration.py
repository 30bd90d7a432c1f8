"""Propensities are held against what was taken, and refused where nobody drew from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from recsys.simulator.off_policy import OffPolicyConfig, PropensityCalibration, Refused, evaluate_policy
from recsys.simulator.off_policy.synthetic import World

_WORLD = World.drawn(seed=0)
_QUICK = OffPolicyConfig(n_resamples=100)


def _of(world: World, num_rounds: int, seed: int) -> PropensityCalibration:
    found = PropensityCalibration.of_log(world.log(num_rounds, seed=seed))
    assert found is not None
    return found


def test_true_propensities_have_slope_1_and_tenths_that_agree() -> None:
    found = _of(_WORLD, 40_000, seed=1)
    assert found.slope == pytest.approx(1, abs=0.05)
    assert found.p_value is not None
    assert found.p_value > 0.01
    assert len(found.bins) == 10
    assert sum(each.num_chances for each in found.bins) == 40_000 * 10
    assert [each.propensity for each in found.bins] == sorted(each.propensity for each in found.bins)
    for each in found.bins:
        assert each.frequency == pytest.approx(each.propensity, rel=0.1)
    assert found.problem(0.05, 3) is None


def test_slope_and_its_error_are_those_of_a_regression_over_all_that_could_have_been_taken() -> None:
    log = _WORLD.log(300, seed=2)
    chances = _WORLD.behaviour[log.context_of].ravel()
    taken = (np.arange(10) == log.actions[:, None]).ravel()
    found = PropensityCalibration.of_log(log)
    assert found is not None
    assert found.slope == pytest.approx(stats.linregress(chances, taken).slope, rel=1e-9)
    distances = [(each.slope - 1) / each.slope_error for each in (_of(_WORLD, 300, seed) for seed in range(300))]  # type: ignore[operator]
    assert np.std(distances) == pytest.approx(1, abs=0.1)
    p_values = [_of(_WORLD, 2_000, seed).p_value for seed in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_what_cannot_be_taken_does_not_count() -> None:
    chances, taken = np.array([[0.7, 0.3]]), np.array([[650, 350]])
    found = PropensityCalibration.of(chances, taken, np.array([1_000]))
    padded = [np.pad(each, ((0, 0), (0, 3))) for each in (chances, taken)]
    assert PropensityCalibration.of(*padded, np.array([1_000])) == found
    assert found.slope == pytest.approx(0.75)
    assert [each.num_chances for each in found.bins] == [1_000, 1_000]
    assert found.p_value == pytest.approx(stats.chisquare([650, 350], [700, 300]).pvalue)


def test_equal_propensities_have_no_slope_and_are_tested_all_the_same() -> None:
    uniform = replace(_WORLD, behaviour=np.full((5, 10), 0.1))
    found = _of(uniform, 5_000, seed=0)
    assert (found.slope, len(found.bins)) == (None, 1)
    assert found.p_value is not None
    assert found.p_value > 0.01
    skewed = replace(_WORLD.log(5_000, seed=0), propensities=np.full(5_000, 0.1), behaviour=uniform.behaviour)
    report = evaluate_policy(skewed, uniform.behaviour, _QUICK)
    assert "some actions were taken more or less often" in report.notes[0]


def test_a_log_that_was_not_drawn_from_its_propensities_gets_no_number() -> None:
    uniform = replace(_WORLD, behaviour=np.full((5, 10), 0.1)).log(5_000, seed=0)
    said = _WORLD.behaviour[uniform.context_of, uniform.actions]
    report = evaluate_policy(replace(uniform, propensities=said, behaviour=_WORLD.behaviour), _WORLD.behaviour, _QUICK)
    assert report.calibration is not None
    assert report.calibration.slope == pytest.approx(0, abs=0.1)
    for outcome in report.outcomes.values():
        assert isinstance(outcome, Refused)
        assert "not taken as often as their propensities say" in outcome.reason
    assert PropensityCalibration.of_log(replace(uniform, behaviour=None)) is None
