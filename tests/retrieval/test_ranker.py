"""The conditional logit on cases that are worked out by hand or drawn from a known model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.errors import ArtifactError, DataError
from recsys.retrieval.features import Candidates
from recsys.retrieval.ranker import ConditionalLogit, calibration_error, fit_logit, log_loss

NAMES = ("a", "b")


def candidates(sizes: list[int], features: np.ndarray) -> Candidates:
    return Candidates(
        offsets=np.append(0, np.cumsum(sizes)), items=np.arange(sum(sizes)), features=features.astype(np.float32)
    )


def drawn(num_cases: int, weights: np.ndarray, outside: float, seed: int) -> tuple[Candidates, np.ndarray]:
    """Cases with 1 to 8 candidates whose outcome is drawn from the model itself."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 9, num_cases)
    made = candidates(sizes.tolist(), random.normal(size=(sizes.sum(), 2)) * [1, 5])
    chosen = np.full(num_cases, -1)
    for case in range(num_cases):
        rows = np.arange(made.offsets[case], made.offsets[case + 1])
        utilities = np.append(made.features[rows] @ weights, outside)
        shares = np.exp(utilities - utilities.max())
        chosen[case] = random.choice(np.append(rows, -1), p=shares / shares.sum())
    return made, chosen


def test_probabilities_are_the_softmax_over_a_historys_candidates_and_the_outside() -> None:
    logit = ConditionalLogit(names=NAMES, weights=np.array([1.0, -2.0]), outside=0.5)
    made = candidates([2, 0, 1], np.array([[1, 0], [0, 1], [3, 1]]))
    total = np.exp(1) + np.exp(-2) + np.exp(0.5)
    expected = [np.exp(1) / total, np.exp(-2) / total, np.exp(1) / (np.exp(1) + np.exp(0.5))]
    np.testing.assert_allclose(np.exp(logit.log_probabilities(made)), expected, rtol=1e-6)
    chosen = np.array([1, -1, -1])
    losses = [-np.log(expected[1]), 0, -np.log(1 - expected[2])]
    assert log_loss(logit.log_probabilities(made), made, chosen) == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_fit_finds_the_model_that_the_cases_were_drawn_from() -> None:
    weights, outside = np.array([1.5, -0.3]), 1.0
    made, chosen = drawn(6000, weights, outside, seed=0)
    fitted = fit_logit(made, chosen, NAMES, penalty=0.0)
    np.testing.assert_allclose(fitted.weights, weights, atol=0.06)
    assert fitted.outside == pytest.approx(outside, abs=0.1)
    other, other_chosen = drawn(4000, weights, outside, seed=1)
    assert calibration_error(fitted.log_probabilities(other), other_chosen) < 0.1
    overconfident = ConditionalLogit(names=NAMES, weights=3 * weights, outside=3 * outside)
    assert calibration_error(overconfident.log_probabilities(other), other_chosen) > 0.2


def test_a_fit_is_where_the_penalised_likelihood_is_flat_whatever_the_start() -> None:
    made, chosen = drawn(300, np.array([1.0, 0.2]), 0.0, seed=2)
    penalty = 0.05
    fitted = fit_logit(made, chosen, NAMES, penalty=penalty)
    scale = made.features.std(axis=0)

    def objective(weights: np.ndarray, outside: float) -> float:
        logit = ConditionalLogit(names=NAMES, weights=weights, outside=outside)
        return log_loss(logit.log_probabilities(made), made, chosen) + penalty * float(((weights * scale) ** 2).sum())

    best = objective(fitted.weights, fitted.outside)
    for step in (np.array([0.02, 0, 0]), np.array([0, 0.02, 0]), np.array([0, 0, 0.02])):
        for sign in (-1, 1):
            moved = np.append(fitted.weights, fitted.outside) + sign * step
            assert objective(moved[:2], float(moved[2])) > best
    elsewhere = ConditionalLogit(names=NAMES, weights=np.array([-2.0, 1.0]), outside=3.0)
    again = fit_logit(made, chosen, NAMES, penalty=penalty, start=elsewhere)
    np.testing.assert_allclose(again.weights, fitted.weights, atol=1e-3)


def test_a_stronger_penalty_leaves_smaller_weights_and_a_constant_feature_none() -> None:
    made, chosen = drawn(300, np.array([1.0, 0.2]), 0.0, seed=3)
    norms = [np.linalg.norm(fit_logit(made, chosen, NAMES, penalty=penalty).weights) for penalty in (0, 0.1, 10)]
    assert norms[0] > norms[1] > norms[2]
    made.features[:, 1] = 4
    assert fit_logit(made, chosen, NAMES, penalty=0.01).weights[1] == pytest.approx(0, abs=1e-6)


def test_calibration_error_is_the_gap_between_expected_and_observed_hits() -> None:
    # Two bins of probability 1 each: in the first no hit, in the second two of them.
    log_probabilities = np.log([0.25, 0.25, 0.25, 0.25, 0.5, 0.5])
    assert calibration_error(log_probabilities, np.array([4, 5]), num_bins=2) == pytest.approx(1.0)
    assert calibration_error(log_probabilities, np.array([0, 5]), num_bins=2) == pytest.approx(0.0)


def test_a_ranker_comes_back_from_disk_the_same(tmp_path: Path) -> None:
    logit = ConditionalLogit(names=NAMES, weights=np.array([0.1, -1 / 3]), outside=1.7)
    logit.save(tmp_path, {"cases": 3})
    loaded = ConditionalLogit.load(tmp_path)
    assert (loaded.names, loaded.weights.tolist(), loaded.outside) == (NAMES, logit.weights.tolist(), 1.7)
    (tmp_path / "ranker.json").write_text('{"format": 1, "weights": [1]}')
    with pytest.raises(ArtifactError, match="cannot read"):
        ConditionalLogit.load(tmp_path)
    (tmp_path / "ranker.json").write_text('{"format": 9}')
    with pytest.raises(ArtifactError, match="format 9"):
        ConditionalLogit.load(tmp_path)


def test_no_cases_cannot_be_learned_from() -> None:
    with pytest.raises(DataError, match="needs validation cases"):
        fit_logit(candidates([], np.zeros((0, 2))), np.zeros(0, dtype=np.int64), NAMES, penalty=1.0)
