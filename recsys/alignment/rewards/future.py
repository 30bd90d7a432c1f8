"""Credit for what comes later: another reward against each of the next N items, the nearer ones weighing more.

MSRA of REG4Rec (arXiv 2508.15308): R = sum_n w_n R(proposal, i_{t+n}), w_n = decay ** (n - 1) over their sum; the
paper shows falling weights and gives no numbers. Items beyond the end of a sequence are left out and the other weights
raised. Whether a proposal *is* the next item stays a matter of `Rollouts.hits`: a bonus for exact hits reads that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext
from recsys.alignment.rewards.exact import ExactConfig
from recsys.alignment.rewards.path import PathConfig
from recsys.alignment.rewards.prefix import PrefixConfig
from recsys.alignment.rewards.relevance import RelevanceConfig
from recsys.alignment.rewards.reward import Reward, TermConfig
from recsys.alignment.rollouts import Rollouts

TargetRewardConfig = Annotated[ExactConfig | PrefixConfig | PathConfig | RelevanceConfig, Field(discriminator="kind")]
"""Rewards against one target; of these the inner `name`, `weight` and `transform` say nothing."""


class FutureConfig(TermConfig):
    """Another reward against each of the next items."""

    kind: Literal["future"] = "future"
    steps: int = Field(default=3, ge=1)
    """N: how many of the next items count."""
    decay: float = Field(default=0.7, gt=0, le=1)
    """Weight of an item beside that of the one before it."""
    reduce: Literal["mean", "max"] = "mean"
    """`max`: the best of decay ** (n - 1) * R_n, so that later items of different intents are not averaged."""
    target: TargetRewardConfig = PrefixConfig()
    """The reward against one item."""

    def build(self, context: RewardContext) -> FutureReward:
        """Needs what the inner reward needs."""
        inner = self.target.build(context)
        return FutureReward(inner, steps=self.steps, decay=self.decay, reduce=self.reduce, name=self.term_name)


@dataclass(frozen=True)
class FutureReward:
    """See the module."""

    inner: Reward
    steps: int = 3
    decay: float = 0.7
    reduce: Literal["mean", "max"] = "mean"
    name: str = "future"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]; 0 in rows without any future."""
        steps = min(self.steps, rollouts.futures.shape[1])
        if steps == 0:
            return torch.zeros_like(rollouts.items, dtype=torch.float32)
        values = torch.stack([self.inner(replace(rollouts, futures=rollouts.futures[:, n:])) for n in range(steps)])
        weights = self.decay ** torch.arange(steps, device=values.device).float()
        present = rollouts.futures[:, :steps].T >= 0  # [N, B]
        weights = torch.where(present, weights.unsqueeze(1), 0.0)
        if self.reduce == "max":
            # Below 0 an absent item would be the best one.
            worst = torch.finfo(values.dtype).min
            best = torch.where(present.unsqueeze(-1), weights.unsqueeze(-1) * values, worst).amax(0)
            return torch.where(rollouts.is_real & present.any(0).unsqueeze(1), best, 0.0)
        total = weights.sum(0).clamp(min=torch.finfo(values.dtype).tiny)
        return (values * (weights / total).unsqueeze(-1)).sum(0)
