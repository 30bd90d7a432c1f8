"""A head on frozen features, and its two losses: regression on ratings and Bradley-Terry on pairs.

HelpSteer2-Preference (arXiv 2410.01257) found the best reward model by Bradley-Terry from the weights of a regression:
fit one, then the other, on the same head.

Shapes: M rows, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from recsys.config import StrictConfig


class HeadConfig(StrictConfig):
    """A head, and how it is trained."""

    hidden: int = Field(default=0, ge=0)
    """Width of the one hidden layer; 0 for a linear head."""
    steps: int = Field(default=500, ge=1)
    """Steps of the optimiser: as many for few rows as for many, so that a head converges on both."""
    batch_size: int = Field(default=1024, ge=1)
    """Rows of a step."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Of AdamW, falling to 0 along half a cosine."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of AdamW; what keeps margins of few pairs from growing without end."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights and the order of rows."""


class RewardHead(nn.Module):
    """Features to one number; standardises them by what the first fit saw.

    Args:
        num_features: F.
        config: hidden layer and training.
    """

    mean: Tensor
    deviation: Tensor
    scale: Tensor

    def __init__(self, num_features: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            layers: list[nn.Module] = [nn.Linear(num_features, config.hidden or 1)]
            if config.hidden:
                layers += [nn.ReLU(), nn.Linear(config.hidden, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """float32 [...] of float32 [..., F]: the reward, times `scale`."""
        rewards: Tensor = self.layers(self.standardised(features)).squeeze(-1)
        return self.scale * rewards

    def standardised(self, features: Tensor) -> Tensor:
        """float32 [..., F]; features that did not vary in the first fit are 0."""
        return torch.where(self.deviation > 0, (features - self.mean) / self.deviation.clamp(min=1e-12), 0.0)

    @torch.no_grad()
    def representation(self, features: Tensor) -> Tensor:
        """float32 [..., hidden or F]: what the last layer reads; for `quality.probes`."""
        read: Tensor = self.layers[:-1](self.standardised(features))
        return read

    def learn_standard(self, features: Tensor) -> None:
        """Take mean and deviation from float32 [M, F], the first time only: later losses start from the same head."""
        if not bool(self.deviation.any()):
            self.mean.copy_(features.mean(dim=0))
            self.deviation.copy_(features.std(dim=0, correction=0))

    def fit_regression(self, features: Tensor, ratings: Tensor) -> None:
        """Least squares on ratings float32 [M] of rows float32 [M, F]."""
        _check_rows(features, ratings)
        self.learn_standard(features)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.copy_(ratings.mean())
        self._train(len(features), lambda rows: functional.mse_loss(self(features[rows]), ratings[rows]))

    def fit_bradley_terry(self, chosen: Tensor, rejected: Tensor, weights: Tensor | None = None) -> None:
        """-log sigmoid(r(chosen) - r(rejected)) on pairs, from the weights that the head has.

        Args:
            chosen: float32 [M, F].
            rejected: float32 [M, F].
            weights: float32 [M], not negative, of the pairs; all 1 when None.
        """
        _check_rows(chosen, rejected)
        self.learn_standard(torch.cat([chosen, rejected]))
        factors = torch.ones(len(chosen)) if weights is None else weights
        _check_rows(chosen, factors)

        def loss(rows: Tensor) -> Tensor:
            lost = bradley_terry(self(chosen[rows]), self(rejected[rows]))
            return (factors[rows] * lost).sum() / factors[rows].sum().clamp(min=1e-12)

        self._train(len(chosen), loss)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply all rewards by `factor` > 0: order stays, confidence changes (see `quality.margin_scale`)."""
        self.scale.mul_(factor)

    def _train(self, num_rows: int, loss_of: Callable[[Tensor], Tensor]) -> None:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.config.steps)
        for rows in row_batches(num_rows, self.config):
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(rows))
            optimizer.step()
            schedule.step()


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """float32 [M]: -log P(the chosen one wins) of rewards float32 [M]."""
    return functional.softplus(rejected - chosen)


def row_batches(num_rows: int, config: HeadConfig) -> Iterator[Tensor]:
    """int64 rows of every step: pass after pass over all rows, each in a new order."""
    generator = torch.Generator().manual_seed(config.seed)
    orders = (torch.randperm(num_rows, generator=generator) for _ in itertools.count())
    passes = (torch.split(order, config.batch_size) for order in orders)
    return itertools.islice(itertools.chain.from_iterable(passes), config.steps)


def _check_rows(first: Tensor, second: Tensor) -> None:
    if len(first) == 0 or len(first) != len(second):
        raise ValueError(f"a head is fitted on as many rows of one as of the other: {len(first)} and {len(second)}")
