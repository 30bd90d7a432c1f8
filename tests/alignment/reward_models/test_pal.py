"""An ideal-point mixture tells tastes apart, and places a new user from ten pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.alignment.reward_models import (
    HeadConfig,
    IdealPoints,
    PalConfig,
    RewardHead,
    load_ideal_points,
    pair_accuracy,
    save_ideal_points,
)
from recsys.errors import ArtifactError

CONFIG = PalConfig(points=2, dimensions=4)
IDEALS = torch.tensor([[2.0, 0.0, 0.0, 0.0], [-1.0, 1.5, 0.0, 0.0]])


def _pairs(tastes: Tensor, per_user: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Users int64, chosen and rejected items: the nearer to the user's ideal is mostly chosen."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.arange(len(tastes)).repeat_interleave(per_user)
    first, second = torch.randn(2, len(users), 4, generator=generator)
    ideals = IDEALS[tastes[users]]
    margin = (second - ideals).square().sum(1) - (first - ideals).square().sum(1)
    wins = (torch.rand(len(users), generator=generator) < torch.sigmoid(margin)).unsqueeze(1)
    return users, torch.where(wins, first, second), torch.where(wins, second, first)


@pytest.fixture(scope="module")
def tastes() -> Tensor:
    return torch.arange(30) % 2


@pytest.fixture(scope="module")
def model(tastes: Tensor) -> IdealPoints:
    users, chosen, rejected = _pairs(tastes, 40, seed=0)
    return IdealPoints.fit(users, chosen, rejected, len(tastes), CONFIG)


@torch.no_grad()
def _accuracy(model: IdealPoints, logits: Tensor, chosen: Tensor, rejected: Tensor) -> float:
    return pair_accuracy((model(logits, chosen) - model(logits, rejected)).numpy())


def test_new_users_are_placed_by_ten_pairs_better_than_one_reward_for_all(tastes: Tensor, model: IdealPoints):
    _, chosen, rejected = _pairs(tastes, 40, seed=0)
    common = RewardHead(4, HeadConfig(steps=150))
    common.fit_bradley_terry(chosen, rejected)
    new = torch.arange(12) % 2
    _, few_chosen, few_rejected = _pairs(new, 10, seed=1)
    _, later_chosen, later_rejected = _pairs(new, 50, seed=2)
    points = model.points.detach().clone()
    personal, pooled = [], []
    for user in range(12):
        few, later = slice(user * 10, (user + 1) * 10), slice(user * 50, (user + 1) * 50)
        logits = model.fit_user(few_chosen[few], few_rejected[few])
        assert logits.shape == (2,)
        personal.append(_accuracy(model, logits, later_chosen[later], later_rejected[later]))
        with torch.no_grad():
            margins = common(later_chosen[later]) - common(later_rejected[later])
        pooled.append(pair_accuracy(margins.numpy()))
    assert np.mean(personal) > np.mean(pooled) + 0.03
    assert torch.equal(points, model.points)


def test_the_mixture_says_who_has_which_taste(tastes: Tensor, model: IdealPoints):
    mixture = model.mixture(model.user_logits)
    torch.testing.assert_close(mixture.sum(1), torch.ones(len(tastes)))
    cluster = mixture.argmax(1)
    agreement = float((cluster == tastes).float().mean())
    assert max(agreement, 1 - agreement) > 0.95


def test_a_user_without_pairs_stands_at_the_mean_of_all_points(model: IdealPoints):
    logits = model.fit_user(torch.zeros(0, 4), torch.zeros(0, 4))
    assert model.mixture(logits).tolist() == [0.5, 0.5]


def test_a_saved_model_rewards_as_before(model: IdealPoints, tmp_path: Path):
    save_ideal_points(tmp_path / "pal", model)
    loaded = load_ideal_points(tmp_path / "pal")
    items = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(loaded.user_logits, items), model(model.user_logits, items))
    with pytest.raises(ArtifactError, match="cannot read the reward model"):
        load_ideal_points(tmp_path)


def test_pairs_must_be_equally_long():
    with pytest.raises(ValueError, match="equally long"):
        IdealPoints.fit(torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4), torch.zeros(3, 4), 1, CONFIG)
