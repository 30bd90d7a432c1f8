"""Relevance without preference labels, with terms against its being hacked (R^3, arXiv 2402.03469).

A retriever's cosine alone is easily driven up: by proposing what is known already, or, in text, by repeating oneself.
The paper's idea is to mix in such inductive biases; the mixture is ours:

    R = cos(query, item) * [not seen, not proposed before]
        + length_weight * min(words / full_length, 1) - repetition_weight * share of repeated runs of words

The query is the vector of the next item, or the recency-weighted mean of the history's, or both, half each.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.proposals import in_history, proposed_before
from recsys.alignment.rewards.reward import TermConfig, next_items
from recsys.alignment.rewards.texts import as_rewards, repeated_share, rollout_texts, words
from recsys.alignment.rollouts import Rollouts
from recsys.config import StrictConfig
from recsys.retrieval.towers import ContentTower


class TextShapeConfig(StrictConfig):
    """What a text that comes with a proposal should look like."""

    full_length: int = Field(default=30, ge=1)
    """Words from which on more of them earn nothing."""
    length_weight: float = Field(default=0.5, ge=0)
    """Of words up to there."""
    repetition_weight: float = Field(default=0.5, ge=0)
    """Of the share of runs of words that occurred before."""
    run_length: int = Field(default=3, ge=1)
    """Words of a run."""


class RelevanceConfig(TermConfig):
    """Cosine of item vectors with the next item or the history, regularised."""

    kind: Literal["relevance"] = "relevance"
    query: Literal["target", "history", "both"] = "target"
    """What proposals are compared with."""
    decay: float = Field(default=0.7, gt=0, le=1)
    """Weight of an item of the history beside that of the one after it."""
    repeats: Literal["refuse", "allow"] = "refuse"
    """`refuse`: items of the history earn nothing; `allow` where people do come back to items."""
    text: TextShapeConfig | None = None
    """Terms on the texts; none for policies that write none."""

    def build(self, context: RewardContext) -> RelevanceReward:
        """Reads item vectors."""
        required(context.item_vectors, "item vectors", self.term_name)
        return RelevanceReward(self, context)


class RelevanceReward:
    """See the module."""

    def __init__(self, config: RelevanceConfig, context: RewardContext) -> None:
        assert context.item_vectors is not None, "checked by `build`"
        self.name = config.term_name
        self._config = config
        self._vectors = functional.normalize(context.item_vectors.float(), dim=-1)
        self._tower = ContentTower(self._vectors.cpu().numpy(), config.decay)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]; without terms on texts in -1..1.

        Raises:
            RewardError: there are terms on texts, and the policy wrote none.
        """
        vectors = self._vectors[rollouts.items]
        queries = self._queries(rollouts)
        cosines = (vectors @ queries.unsqueeze(-1)).squeeze(-1)
        repeated = proposed_before(rollouts)
        if self._config.repeats == "refuse":
            repeated |= in_history(rollouts, len(self._vectors))
        values = torch.where(rollouts.is_real & ~repeated, cosines, 0.0)
        return values if self._config.text is None else values + self._shape(rollouts, self._config.text)

    def _queries(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, D]; zeros where there is nothing to compare with."""
        queries = torch.zeros(len(rollouts.items), self._vectors.shape[1], device=self._vectors.device)
        share = 0.5 if self._config.query == "both" else 1.0
        if self._config.query != "history":
            targets = next_items(rollouts).unsqueeze(1)
            queries += share * torch.where(targets >= 0, self._vectors[targets.squeeze(1)], 0.0)
        if self._config.query != "target":
            queries += share * torch.from_numpy(self._tower.encode(rollouts.histories)).to(queries.device)
        return queries

    def _shape(self, rollouts: Rollouts, shape: TextShapeConfig) -> Tensor:
        def value(text: str) -> float:
            length = min(len(words(text)) / shape.full_length, 1.0)
            return shape.length_weight * length - shape.repetition_weight * repeated_share(text, shape.run_length)

        return as_rewards([[value(text) for text in row] for row in rollout_texts(rollouts, self.name)], rollouts)
