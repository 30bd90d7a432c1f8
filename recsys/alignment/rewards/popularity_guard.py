"""A penalty once a policy proposes more popular items than the reference policy does: the easy way to hits.

An item's popularity level is log(N / rank), rank 1 for the most popular of N items: 0 for the least popular one. While
the mean level of a group is at most (1 + tolerance) times the reference's, nothing happens; above, each proposal
loses its own excess over the reference. (A penalty that is the same for a whole group would not change its advantages.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from scipy import stats
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts


class PopularityGuardConfig(TermConfig):
    """A penalty on proposals that are more popular than the reference policy's."""

    kind: Literal["popularity_guard"] = "popularity_guard"
    tolerance: float = Field(default=0.1, ge=0)
    """By what share the mean level of a group may exceed the reference's."""

    def build(self, context: RewardContext) -> PopularityGuardReward:
        """Reads popularity and the reference policy's mean level."""
        levels = popularity_levels(required(context.popularity, "popularity", self.term_name))
        reference = required(context.reference_popularity, "reference_popularity", self.term_name)
        return PopularityGuardReward(levels, reference, self.tolerance, self.term_name)


def popularity_levels(popularity: Tensor) -> Tensor:
    """float32 [N]: log(N / rank) of counts int64 [N]; items with equal counts share their mean rank."""
    ranks = torch.from_numpy(stats.rankdata(-popularity.cpu().numpy())).to(popularity.device)
    return (math.log(len(popularity)) - ranks.log()).float()


def mean_level(rollouts: Rollouts, popularity: Tensor) -> float:
    """Mean level of all proposals: of the reference policy's, it is the context's `reference_popularity`."""
    return float(popularity_levels(popularity)[rollouts.items[rollouts.is_real]].mean())


@dataclass(frozen=True)
class PopularityGuardReward:
    """See the module."""

    levels: Tensor
    """float32 [N]."""
    reference: float
    """Mean level of the reference policy's proposals."""
    tolerance: float = 0.1
    name: str = "popularity_guard"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G], at most 0."""
        levels = torch.where(rollouts.is_real, self.levels[rollouts.items], 0.0)
        mean = levels.sum(dim=1, keepdim=True) / rollouts.is_real.sum(dim=1, keepdim=True).clamp(min=1)
        penalised = (mean > (1 + self.tolerance) * self.reference) & rollouts.is_real
        return torch.where(penalised, -(levels - self.reference).clamp(min=0), 0.0)
