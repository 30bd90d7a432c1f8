"""Peer review: two reward models that pick each other's training pairs, and so find the wrong ones.

After collaborative reward modelling (CRM). Wrong labels are learned late: a model that is fitted on everything gives
them a large loss at first. One model alone confirms its own mistakes when it picks by its own loss; two with different
beginnings pick for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from recsys.alignment.pairs import PreferencePairs
from recsys.config import StrictConfig

PairFeatures: TypeAlias = Callable[[PreferencePairs], npt.NDArray[np.floating[Any]]]
"""float [P, D]: features of the chosen answer less those of the rejected one (or their mean)."""


class PeerReviewConfig(StrictConfig):
    """The two models and their schedule."""

    noise: float = Field(default=0.2, gt=0, lt=0.5)
    """Share of pairs that are expected to be wrong, and are rejected; `estimate_flip_rate` may tell it."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the pairs."""
    warmup_share: float = Field(default=0.25, ge=0, lt=1)
    """Share of the steps in which each model learns from all pairs."""
    shrink_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps, after the warm-up, over which the kept share falls from 1 to 1 - noise."""
    batch_size: int = Field(default=128, ge=2)
    """Pairs a step."""
    hidden_size: int = Field(default=16, ge=1)
    """Width of the models' hidden layer."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Keeps them from learning wrong labels by heart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerReview:
    """What two models think of the labels."""

    margins: npt.NDArray[np.float32]
    """float32 [P]: mean log-odds that the label is right."""
    kept: npt.NDArray[np.bool_]
    """bool [P]: false for the share `noise` with the smallest margins."""
    kept_share: list[float]
    """The schedule as it went, one number a step."""


def keep_share(step: int, num_steps: int, config: PeerReviewConfig) -> float:
    """1 - noise * min(1, t / T) of the pairs of a batch, t steps after the warm-up, T the steps of the decline."""
    after = step - config.warmup_share * num_steps
    decline = max(1.0, config.shrink_share * (1 - config.warmup_share) * num_steps)
    return 1 - config.noise * min(1.0, max(0.0, after / decline))


def peer_review(differences: npt.NDArray[np.floating[Any]], config: PeerReviewConfig, seed: int = 0) -> PeerReview:
    """Fit two Bradley-Terry models on pairs and judge the pairs by them.

    Args:
        differences: float [P, D], features of chosen less rejected answers; every column of about unit size.
        config: models and schedule.
        seed: of both models and the order of pairs.

    Raises:
        ValueError: features that are not finite or not [P, D] with P at least 2.
    """
    if differences.ndim != 2 or len(differences) < 2 or not np.isfinite(differences).all():
        raise ValueError(f"differences must be finite [P, D] with at least 2 pairs, got {list(differences.shape)}")
    inputs = torch.from_numpy(np.ascontiguousarray(differences, dtype=np.float32))
    generator = torch.Generator().manual_seed(seed)
    reviewers = [_Reviewer(inputs.shape[1], config, generator) for _ in range(2)]
    num_batches = -(-len(inputs) // config.batch_size)
    num_steps = config.epochs * num_batches
    shares = []
    for step in range(num_steps):
        if step % num_batches == 0:
            order = torch.randperm(len(inputs), generator=generator)
        begin = (step % num_batches) * config.batch_size
        batch = inputs[order[begin : begin + config.batch_size]]
        shares.append(keep_share(step, num_steps, config))
        count = max(1, round(shares[-1] * len(batch)))
        proposals = [reviewer.margins(batch).topk(count).indices for reviewer in reviewers]
        for reviewer, proposal in zip(reviewers, reversed(proposals), strict=True):
            reviewer.learn(batch[proposal])
    margins = torch.stack([reviewer.margins(inputs) for reviewer in reviewers]).mean(0)
    kept = torch.ones(len(inputs), dtype=torch.bool)
    kept[margins.topk(round(config.noise * len(inputs)), largest=False).indices] = False
    return PeerReview(margins=margins.numpy(), kept=kept.numpy(), kept_share=shares)


class _Reviewer:
    """A reward model r(x) without bias, read as r(chosen - rejected): odd, so that swapping a pair flips its sign."""

    def __init__(self, width: int, config: PeerReviewConfig, generator: torch.Generator) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            self.model = nn.Sequential(
                nn.Linear(width, config.hidden_size, bias=False),
                nn.Tanh(),
                nn.Linear(config.hidden_size, 1, bias=False),
            )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def margins(self, differences: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.model(differences).squeeze(1)
            return found

    def learn(self, differences: Tensor) -> None:
        loss = softplus(-self.model(differences).squeeze(1)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


@dataclass(frozen=True, kw_only=True)
class PeerReviewFilter:
    """Drops the pairs that both models together believe least."""

    features: PairFeatures
    """What the models see of a pair."""
    config: PeerReviewConfig
    """Models, schedule, and the share that goes."""
    seed: int = 0
    """See `peer_review`."""

    def __call__(self, pairs: PreferencePairs, /) -> PreferencePairs:
        """See the class."""
        review = peer_review(self.features(pairs), self.config, self.seed)
        return pairs.select(np.flatnonzero(review.kept))
