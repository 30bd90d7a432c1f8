"""Weights that follow the history beat their mean, and no longer once histories are shuffled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys.alignment.rewards import OrchestratorConfig, PreferenceOrchestrator, RewardsConfig, build_rewards
from recsys.alignment.rewards.orchestrator import mean_divergence, target_weights
from tests.alignment.rewards.worlds import context, rollouts

TERMS = ("exact", "novelty", "diversity")


def _synthetic(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Histories whose features say which reward their preferred proposals are good in."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, 4, generator=generator)
    return features, features[:, :3] + 0.5 * torch.randn(num, 3, generator=generator)


def test_targets_are_a_softmax_of_rewards_on_one_scale():
    targets = target_weights(torch.tensor([[0.0, 10.0, 5.0], [2.0, 30.0, 5.0]]), temperature=0.5)
    torch.testing.assert_close(targets[0], torch.softmax(torch.tensor([-2.0, -2.0, 0.0]), 0))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))


def test_predicted_weights_beat_the_mean_weights_unless_histories_are_shuffled():
    features, preferred = _synthetic(600, seed=0)
    held_out, held_out_preferred = _synthetic(300, seed=1)
    config = OrchestratorConfig(epochs=150)
    truth = target_weights(held_out_preferred)
    constant = mean_divergence(truth, target_weights(preferred).mean(0, keepdim=True))

    def divergence(rows: Tensor) -> float:
        adapter = PreferenceOrchestrator.fit(TERMS, rows, preferred, config)
        return mean_divergence(truth, torch.stack(list(adapter.weights(held_out).values()), dim=1))

    assert divergence(features) < 0.5 * constant
    shuffled = features[torch.randperm(600, generator=torch.Generator().manual_seed(2))]
    assert divergence(shuffled) > 0.98 * constant


def test_its_weights_are_what_rewards_take():
    features, preferred = _synthetic(20, seed=0)
    adapter = PreferenceOrchestrator.fit(("exact", "prefix"), features, preferred[:, :2], OrchestratorConfig(epochs=2))
    rewards = build_rewards(
        RewardsConfig.model_validate({"terms": [{"kind": "exact"}, {"kind": "prefix"}]}), context([[0, 0], [0, 1]])
    )
    weights = adapter.weights(features[:2])
    torch.testing.assert_close(weights["exact"] + weights["prefix"], torch.ones(2))
    values = rewards(rollouts([[0, 1], [1, 0]], [[0], [0]]), weights=weights)
    torch.testing.assert_close(values.total[:, 0], torch.stack([torch.tensor(1.0), weights["prefix"][1] * 0.5**0.5]))


def test_rows_must_fit():
    with pytest.raises(ValueError, match="one row a history"):
        PreferenceOrchestrator.fit(TERMS, torch.zeros(3, 4), torch.zeros(3, 2), OrchestratorConfig())
