"""Forced steps against the training path, and temperatures against what made the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from padding import padded

from recsys.data.sequences import Examples, Sequences
from recsys.generator.calibration import expected_calibration_error, fit_temperature
from recsys.generator.scoring import forced_steps

SHAPES = ["nested", "flat", "any_order"]


@pytest.mark.parametrize("shape", SHAPES)
def test_forced_steps_multiply_to_the_likelihood_of_training(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    histories, targets = [[1, 2, 3], [], [7]], [5, 299, 0]
    items, lengths = padded(histories)
    with torch.inference_mode():
        state = recommender.model.start(items, lengths)
        steps = forced_steps(recommender.model, recommender.trie, state, torch.tensor(targets))
        both, both_lengths = padded([[*history, target] for history, target in zip(histories, targets, strict=True)])
        expected = recommender.model.target_log_probs(both, both_lengths, first_target=both_lengths - 1)
    found = sum(step.taken() for step in steps)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_sum_to_one_at_every_temperature(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    for temperature in (0.5, 3.0):
        found = recommender.recommend(Sequences.from_lists([[1], []]), 300, temperature=temperature)
        np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_a_fit_finds_the_temperature_that_made_the_targets(make_recommender, shape: str, temperature: float) -> None:
    recommender = make_recommender(shape, num_items=300)
    histories = Sequences.from_lists([[row % 300, row % 7] for row in range(900)])
    drawn = recommender.sample(histories, 1, seeds=np.arange(900), temperature=temperature, batch_size=500)
    cases = Examples(histories=histories, targets=drawn.items[:, 0])
    fit = recommender.calibrate(cases)
    assert fit.temperature == pytest.approx(temperature, rel=0.15)
    assert fit.nll_after <= fit.nll_before
    if temperature == 1.0:
        return

    def error(used: float) -> float:
        found = recommender.recommend(histories, 20, temperature=used, batch_size=500)
        hits = found.items == cases.targets[:, None]
        return expected_calibration_error(np.exp(found.scores).ravel(), hits.ravel())

    assert error(fit.temperature) < 0.7 * error(1.0)


def test_the_error_of_calibration_by_hand() -> None:
    probabilities = np.array([0.9, 0.1, 0.3, 0.7])
    hits = np.array([True, False, False, True])
    # Bins {0.1, 0.3} and {0.7, 0.9}: |0.4 - 0| + |1.6 - 2| over four cases.
    assert expected_calibration_error(probabilities, hits, bins=2) == pytest.approx(0.2)
    assert expected_calibration_error(np.array([0.5, 0.5]), np.array([True, False]), bins=1) == 0.0


def test_nothing_to_fit_on_is_refused(make_recommender) -> None:
    with pytest.raises(ValueError, match="at least one case"):
        fit_temperature([])
    with pytest.raises(ValueError, match="not empty"):
        expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool))
