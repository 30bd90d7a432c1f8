"""Weights of the terms that depend on the history: Preference Orchestrator, as an adapter before `Rewards`.

The adapter w(x) maps features of a history to the simplex over K terms. It learns from preferred proposals alone: its
target is w* = softmax_k(z_k / temperature), z_k the reward of the preferred proposal in term k on the scale of all
preferred proposals, and its loss KL(w* || w(x)). The submission was withdrawn: take it as an experiment.

Shapes: B histories, F features, K terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from recsys.config import StrictConfig


class OrchestratorConfig(StrictConfig):
    """How the adapter is trained."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the targets: lower ones give the strongest term of a preferred proposal more of the weight."""
    hidden: int = Field(default=32, ge=1)
    """Width of the one hidden layer."""
    epochs: int = Field(default=200, ge=1)
    """Passes, each one step on all rows."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of AdamW."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights."""


def target_weights(preferred: Tensor, temperature: float = 1.0) -> Tensor:
    """float32 [B, K], rows sum to 1: w* of the rewards float [B, K] of preferred proposals.

    A term in which they do not differ has z = 0 throughout.
    """
    deviation = preferred.std(dim=0, correction=0)
    scaled = (preferred - preferred.mean(dim=0)) / torch.where(deviation > 0, deviation, 1.0)
    return torch.softmax(scaled / temperature, dim=1).float()


def mean_divergence(targets: Tensor, weights: Tensor) -> float:
    """Mean over rows of KL(targets || weights), in nats; both float [B, K] or broadcast, rows sum to 1."""
    return float((torch.special.xlogy(targets, targets) - torch.special.xlogy(targets, weights)).sum(-1).mean())


class PreferenceOrchestrator(nn.Module):
    """See the module.

    Args:
        terms: names of the K terms.
        num_features: F.
        config: how it is trained.
    """

    def __init__(self, terms: Sequence[str], num_features: int, config: OrchestratorConfig) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(num_features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, len(self.terms))
        )

    @classmethod
    def fit(cls, terms: Sequence[str], features: Tensor, preferred: Tensor, config: OrchestratorConfig) -> Self:
        """Train on histories whose preferred proposal is known.

        Args:
            terms: names of the K terms.
            features: float32 [B, F].
            preferred: float32 [B, K]: rewards of the preferred proposals.
            config: how.
        """
        if features.shape[0] != preferred.shape[0] or preferred.shape[1] != len(terms) or len(features) == 0:
            raise ValueError(
                f"features {list(features.shape)} and rewards {list(preferred.shape)} must have one row a history "
                f"and one reward for each of {len(terms)} terms"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapter = cls(terms, features.shape[1], config).to(features.device)
        targets = target_weights(preferred, config.temperature)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        for _ in range(config.epochs):
            loss = functional.kl_div(adapter.log_weights(features), targets, reduction="batchmean")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return adapter

    def log_weights(self, features: Tensor) -> Tensor:
        """float32 [B, K]."""
        return torch.log_softmax(self.layers(features), dim=1)

    @torch.no_grad()
    def weights(self, features: Tensor) -> dict[str, Tensor]:
        """By term float32 [B], together 1 for each history: what `Rewards` takes as `weights`."""
        return dict(zip(self.terms, self.log_weights(features).exp().unbind(dim=1), strict=True))
