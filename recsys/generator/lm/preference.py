"""Causal preference weighting: items that a history makes likelier count for more. Knows items' likelihoods only.

NextQuill (arXiv 2506.02368): what a user's history causes is the difference between what is predicted with it and
without it. Targets with a large effect carry the preference; the others are what everybody takes. The paper weighs
tokens of text; here a target is an item, whose effect is taken per code (the geometric mean over its codes), so that
the paper's threshold keeps its meaning.

Only targets of the next-item task are weighed, of which the history is all that is given. Without it, what a model
predicts depends on the item alone: all items are scored once an epoch and kept, so that a step costs nothing more.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from recsys.config import StrictConfig
from recsys.generator.lm.language import ItemLanguage, TargetLogProbs

_AT_A_TIME = 1024


class PreferenceConfig(StrictConfig):
    """Settings of the weighting; the defaults are the paper's."""

    threshold: float = Field(default=0.05, ge=0, lt=1)
    """Effect, as a difference of probabilities per code, above which a target carries the preference."""
    strong: float = Field(default=0.9, gt=0)
    """Weight of targets above the threshold."""
    weak: float = Field(default=0.1, gt=0)
    """Weight of the other ones."""


class PreferenceWeighting:
    """Weights of target items; no gradient flows through them."""

    def __init__(self, language: ItemLanguage, config: PreferenceConfig) -> None:
        self._language = language
        self._config = config
        self._alone: Tensor | None = None

    def forget(self) -> None:
        """The model has changed: predict without history anew when it is needed next."""
        self._alone = None

    def weights(self, targets: TargetLogProbs) -> Tensor:
        """float32 [I]: a weight for each target item; those of histories have mean 1, the others are 1.

        `targets` must hold true log-probabilities, not smoothed ones.
        """
        if self._alone is None:
            self._alone = self._without_history()
        levels = self._language.model.trie.num_levels
        given = (targets.items.detach() / levels).exp()
        alone = (self._alone[targets.item_targets] / levels).exp()
        strong = given - alone > self._config.threshold
        weights = torch.where(strong, self._config.strong, self._config.weak)
        total = (weights * targets.is_history).sum().clamp(min=1e-12)
        return torch.where(targets.is_history, weights * (targets.is_history.sum() / total), 1.0)

    @torch.no_grad()
    def _without_history(self) -> Tensor:
        """float32 [N]: log-probability of every item after the instruction alone."""
        model = self._language.model
        training = model.training
        model.eval()
        items = torch.arange(model.trie.num_items, device=model.learned.device)
        parts = [
            model.target_log_probs(part.unsqueeze(1), torch.ones_like(part)) for part in torch.split(items, _AT_A_TIME)
        ]
        model.train(training)
        return torch.cat(parts)
