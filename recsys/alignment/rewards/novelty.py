"""What the user would hardly have met: rare items, and categories that are new to the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts
from recsys.evaluation.metrics import ItemPopularity


class NoveltyConfig(TermConfig):
    """Rare items, and categories that are new to the history."""

    kind: Literal["novelty"] = "novelty"
    rarity_weight: float = Field(default=1.0, ge=0)
    """Of the self-information of the item's popularity, over that of an item without interactions."""
    categories_weight: float = Field(default=0.0, ge=0)
    """Of the share of the item's categories that no item of the history has."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rarity_weight == self.categories_weight == 0:
            raise ValueError("rarity_weight and categories_weight are both 0; raise one of them")
        return self

    def build(self, context: RewardContext) -> NoveltyReward:
        """Reads popularity and, where they weigh, categories."""
        if self.rarity_weight > 0:
            required(context.popularity, "popularity", self.term_name)
        if self.categories_weight > 0:
            required(context.categories, "categories", self.term_name)
        return NoveltyReward(context, self.rarity_weight, self.categories_weight, self.term_name)


@dataclass(frozen=True)
class NoveltyReward:
    """See the module; a popularity p(i) = (count + 1) / (interactions + items) has -log p(i) of information."""

    context: RewardContext
    rarity_weight: float = 1.0
    categories_weight: float = 0.0
    name: str = "novelty"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G], in 0..rarity_weight + categories_weight."""
        values = torch.zeros_like(rollouts.items, dtype=torch.float32)
        if self.rarity_weight > 0:
            values = values + self.rarity_weight * self._rarity(rollouts.items)
        if self.categories_weight > 0:
            values = values + self.categories_weight * self._unseen(rollouts)
        return torch.where(rollouts.is_real, values, 0.0)

    def _rarity(self, items: Tensor) -> Tensor:
        assert self.context.popularity is not None, "checked by `build`"
        counts = self.context.popularity.cpu().numpy()
        information = torch.from_numpy(ItemPopularity(counts=counts).information).float().to(items.device)
        return information[items] / float(np.log2(counts.sum() + len(counts)))

    def _unseen(self, rollouts: Rollouts) -> Tensor:
        assert self.context.categories is not None, "checked by `build`"
        ids = self.context.category_ids
        histories = rollouts.histories
        rows = torch.from_numpy(np.repeat(np.arange(len(histories)), histories.lengths)).to(ids.device)
        past = histories.items[histories.offsets[0] : histories.offsets[-1]]
        # The last column takes the -1 of items that have fewer categories than others.
        seen = torch.zeros(len(histories), self.context.categories.num_groups + 1, dtype=torch.bool, device=ids.device)
        seen[rows.unsqueeze(1), ids[torch.from_numpy(past).to(ids.device)]] = True
        own = ids[rollouts.items]
        fresh = (own >= 0) & ~seen.gather(1, own.flatten(1).remainder(seen.shape[1])).view(own.shape)
        return fresh.sum(-1) / (own >= 0).sum(-1).clamp(min=1)
