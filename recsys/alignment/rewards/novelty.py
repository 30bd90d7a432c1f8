"""What the user would hardly have met: rare items, and categories that are new to the history."""

from __future__ import annotations

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
        return NoveltyReward(context, self.rarity_weight, self.categories_weight, self.term_name)


class NoveltyReward:
    """See the module; a popularity p(i) = (count + 1) / (interactions + items) has -log p(i) of information.

    Args:
        context: with popularity, and with categories where these weigh.
        rarity_weight: see `NoveltyConfig`.
        categories_weight: see `NoveltyConfig`.
        name: for logs and errors.

    Raises:
        ConfigError: the context lacks what the weights ask for.
    """

    def __init__(
        self,
        context: RewardContext,
        rarity_weight: float = 1.0,
        categories_weight: float = 0.0,
        name: str = "novelty",
    ) -> None:
        self.name = name
        self._categories_weight = categories_weight
        self._rarity = torch.zeros(context.num_items, device=context.codes.device)
        if rarity_weight > 0:
            counts = required(context.popularity, "popularity", name).cpu().numpy()
            share = ItemPopularity(counts=counts).information / np.log2(counts.sum() + len(counts))
            self._rarity += rarity_weight * torch.from_numpy(share).to(self._rarity)
        if categories_weight > 0:
            self._num_categories = required(context.categories, "categories", name).num_groups
            self._category_ids = context.category_ids

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G], in 0..rarity_weight + categories_weight."""
        values = self._rarity[rollouts.items]
        if self._categories_weight > 0:
            values = values + self._categories_weight * self._unseen(rollouts)
        return torch.where(rollouts.is_real, values, 0.0)

    def _unseen(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]: share of the item's categories that no item of the history has."""
        ids, histories = self._category_ids, rollouts.histories
        rows = torch.from_numpy(np.repeat(np.arange(len(histories)), histories.lengths)).to(ids.device)
        past = torch.from_numpy(histories.items).to(ids.device)
        # The last column takes the -1 of items that have fewer categories than others.
        seen = torch.zeros(len(histories), self._num_categories + 1, dtype=torch.bool, device=ids.device)
        seen[rows.unsqueeze(1), ids[past]] = True
        own = ids[rollouts.items]
        before = seen.gather(1, own.flatten(1).remainder(seen.shape[1])).view(own.shape)
        return ((own >= 0) & ~before).sum(-1) / (own >= 0).sum(-1).clamp(min=1)
