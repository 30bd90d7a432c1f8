"""A penalty on misses that stand high in a list with a hit: MiniOneRec's rank term (arXiv 2510.24431).

With w_i = (1 / log2(i + 2)) / sum_j (1 / log2(j + 2)), place i from 0, a miss at place i gets -w_i and the hit 0. A
group without a hit gets 0 throughout: it says nothing about the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts


class RankConfig(TermConfig):
    """A penalty on misses that stand high in a list with a hit."""

    kind: Literal["rank"] = "rank"

    def build(self, context: RewardContext) -> RankReward:
        """Needs nothing of the context."""
        return RankReward(name=self.term_name)


def place_weights(size: int, device: torch.device | None = None) -> Tensor:
    """float32 [size], falling, sum 1: the discounts of DCG, normalised."""
    discounts = 1 / torch.log2(torch.arange(size, device=device) + 2.0)
    return discounts / discounts.sum()


@dataclass(frozen=True, kw_only=True)
class RankReward:
    """See the module. Places are those of the rollouts, the policy's best first."""

    name: str = "rank"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G] in -1..0."""
        hits = rollouts.hits
        penalised = hits.any(dim=1, keepdim=True) & ~hits & rollouts.is_real
        weights = place_weights(hits.shape[1], hits.device)
        return torch.where(penalised, -weights, 0.0)
