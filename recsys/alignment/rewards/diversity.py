"""What a proposal adds to the better-ranked ones of its group: its distance from the nearest of them.

The marginal gain of maximal marginal relevance (Carbonell & Goldstein 1998). The first of a group has nothing before
it and takes the mean of the others, so that the term neither favours it nor holds against it that it is first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts


class DiversityConfig(TermConfig):
    """What a proposal adds to the better-ranked ones of its group."""

    kind: Literal["diversity"] = "diversity"

    def build(self, context: RewardContext) -> DiversityReward:
        """Reads item vectors."""
        return DiversityReward(required(context.item_vectors, "item vectors", self.term_name), self.term_name)


@dataclass(frozen=True)
class DiversityReward:
    """See the module."""

    item_vectors: Tensor
    """float32 [N, D]."""
    name: str = "diversity"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]: 1 - the highest cosine with a better-ranked proposal, in 0..2; 0 for a group of one."""
        vectors = functional.normalize(self.item_vectors[rollouts.items].float(), dim=-1)
        cosines = vectors @ vectors.transpose(1, 2)
        places = torch.arange(cosines.shape[1], device=cosines.device)
        before = (places.unsqueeze(0) < places.unsqueeze(1)) & rollouts.is_real.unsqueeze(1)  # [B, G, those before]
        has_any = before.any(dim=2) & rollouts.is_real
        gains = torch.where(has_any, 1 - torch.where(before, cosines, -torch.inf).amax(dim=2), 0.0)
        mean = gains.sum(dim=1, keepdim=True) / has_any.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.where(rollouts.is_real & ~has_any, mean, gains)
