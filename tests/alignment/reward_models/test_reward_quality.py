"""Calibration against golden values; pairs, best of N and probes on cases whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit

from recsys.alignment.reward_models.quality import (
    RewardQuality,
    best_of_n,
    check_calibrated,
    margin_scale,
    pair_accuracy,
    pair_calibration,
    probability_quality,
    probes,
)


def _margins(num: int, confidence: float, seed: int = 0) -> np.ndarray:
    """Margins of a reward whose probabilities are those of sigmoid(margin / confidence)."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, num)
    return np.where(rng.random(num) < expit(true), true, -true) * confidence


def test_golden_calibration():
    probabilities = np.asarray([0.55, 0.65, 0.75, 0.85, 0.95, 0.6, 0.9, 0.7])
    happened = np.asarray([1, 0, 1, 1, 1, 1, 0, 1], dtype=bool)
    quality = probability_quality(probabilities, happened)
    assert quality.ece == pytest.approx(0.281250, abs=1e-6)
    assert quality.brier == pytest.approx(0.221563, abs=1e-6)
    assert quality.nll == pytest.approx(0.664905, abs=1e-6)


def test_a_probability_of_one_has_a_bin_and_a_likelihood():
    quality = probability_quality(np.asarray([1.0, 0.0, 1.0]), np.asarray([True, False, False]))
    assert quality.ece == pytest.approx(1 / 3)
    assert np.isfinite(quality.nll)


def test_pairs_are_ordered_and_ties_count_half():
    assert pair_accuracy(np.asarray([1.0, -2.0, 0.0, 3.0])) == 0.625


def test_a_reward_that_means_its_probabilities_is_calibrated_although_every_pair_has_one_winner():
    quality = pair_calibration(_margins(20_000, confidence=1.0))
    assert quality.ece < 0.02
    assert check_calibrated(RewardQuality.of(_margins(20_000, confidence=1.0))) is None


def test_an_overconfident_reward_is_flagged_and_one_factor_repairs_it():
    held_out, reported = _margins(5_000, 4.0, seed=1), _margins(20_000, 4.0, seed=2)
    warning = check_calibrated(RewardQuality.of(reported))
    assert warning is not None
    assert warning.ece is not None
    assert warning.ece > 0.1
    assert f"{warning.ece:.3f}, above 0.05" in str(warning)
    factor = margin_scale(held_out)
    assert factor == pytest.approx(0.25, rel=0.1)
    assert check_calibrated(RewardQuality.of(factor * reported)) is None


def test_quality_that_was_not_measured_is_flagged():
    warning = check_calibrated(None)
    assert warning is not None
    assert "never measured" in str(warning)


def test_quality_survives_a_report():
    quality = RewardQuality.of(_margins(50, 1.0))
    assert RewardQuality.from_json(json.loads(json.dumps(quality.to_json()))) == quality


@pytest.mark.parametrize("margins", [np.zeros(0), np.asarray([np.nan]), np.zeros((2, 2))])
def test_margins_must_be_finite_numbers(margins: np.ndarray):
    with pytest.raises(ValueError, match="margins must be finite"):
        RewardQuality.of(margins)


def test_best_of_n_is_judged_by_what_was_chosen():
    rewards = np.asarray([[1.0, 3.0, 2.0, 0.0], [9.0, 1.0, 2.0, 3.0]])
    values = np.asarray([[0.0, 1.0, 0.5, 0.1], [0.2, 0.2, 0.8, 0.4]])
    result = best_of_n(rewards, values)
    assert result.accuracy == 0.5
    assert result.value == pytest.approx(0.6)
    assert result.random == pytest.approx(0.4)
    assert result.oracle == pytest.approx(0.9)
    with pytest.raises(ValueError, match="groups, N"):
        best_of_n(rewards, values[:1])


def test_a_probe_finds_what_a_representation_holds_and_nothing_else():
    rng = np.random.default_rng(0)
    representations = rng.normal(size=(300, 6))
    known = (representations[:, 2] > 0).astype(int)
    unknown = rng.integers(0, 2, 300)
    found = probes(representations, {"known": known, "unknown": unknown})
    assert found["known"].accuracy > 0.9
    assert found["unknown"].accuracy < 0.6
    assert found["unknown"].majority == pytest.approx(max(unknown.mean(), 1 - unknown.mean()))
    with pytest.raises(ValueError, match=r"'rare'.*5 cases of each"):
        probes(representations, {"rare": np.asarray([1] * 2 + [0] * 298)})
