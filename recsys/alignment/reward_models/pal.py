"""People who want different things: an ideal-point mixture, PAL-A (arXiv 2406.08469).

K points p_k are shared; a user's own point is a mixture a_u = sum_k softmax(W_u)_k p_k. An item x lies at f(x), and
its reward is how near that is: -||f(x) - a_u||^2. Pairs teach f, the points and the weights of the users at hand by
the logistic loss; of a new user only the K weights are fitted, so that a few pairs are enough.

Shapes: M pairs, F item features, D dimensions of the space, K points, U users.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys.alignment.reward_models.head import bradley_terry
from recsys.config import StrictConfig


class PalConfig(StrictConfig):
    """The space of points, and how it is trained."""

    points: int = Field(default=8, ge=1)
    """K: kinds of taste."""
    dimensions: int = Field(default=8, ge=1)
    """D."""
    steps: int = Field(default=150, ge=1)
    """Steps, each on all pairs."""
    learning_rate: float = Field(default=2e-2, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of AdamW, on the map and the points."""
    user_steps: int = Field(default=100, ge=1)
    """Steps of the fit of a new user's weights."""
    user_penalty: float = Field(default=0.1, ge=0)
    """On the squared weights W_u: few pairs leave a user near the mean of all points."""
    seed: int = Field(default=0, ge=0)
    """Of the initial map and points."""


class IdealPoints(nn.Module):
    """See the module. Features are standardised by what the fit saw, and scaled to a mean length of 1.

    Args:
        num_features: F.
        num_users: U.
        config: sizes and training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int, num_users: int, config: PalConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.zeros(num_features))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.map = nn.Linear(num_features, config.dimensions, bias=False)
            self.points = nn.Parameter(torch.randn(config.points, config.dimensions))
            self.user_logits = nn.Parameter(0.1 * torch.randn(num_users, config.points))

    @classmethod
    def fit(cls, users: Tensor, chosen: Tensor, rejected: Tensor, num_users: int, config: PalConfig) -> Self:
        """Train on pairs.

        Args:
            users: int64 [M], in 0..U - 1.
            chosen: float32 [M, F], item features.
            rejected: float32 [M, F].
            num_users: U.
            config: sizes and training.

        Raises:
            ValueError: no pairs, or arrays of different length.
        """
        if len(users) == 0 or not len(users) == len(chosen) == len(rejected):
            raise ValueError(f"pairs must be equally long and not empty: {len(users)}, {len(chosen)}, {len(rejected)}")
        model = cls(chosen.shape[1], num_users, config)
        rows = torch.cat([chosen, rejected])
        model.mean.copy_(rows.mean(dim=0))
        model.deviation.copy_(rows.std(dim=0, correction=0) * chosen.shape[1] ** 0.5)
        optimizer = torch.optim.AdamW(
            [
                {"params": [*model.map.parameters(), model.points], "weight_decay": config.weight_decay},
                {"params": [model.user_logits], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        for _ in range(config.steps):
            logits = model.user_logits[users]
            loss = bradley_terry(model(logits, chosen), model(logits, rejected)).mean()
            loss = loss + config.user_penalty * model.user_logits.square().sum(dim=1).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return model

    def forward(self, user_logits: Tensor, features: Tensor) -> Tensor:
        """float32 [...]: rewards of items float32 [..., F] for users with weights float32 [..., K]."""
        ideal = torch.softmax(user_logits, dim=-1) @ self.points
        return -(self.place(features) - ideal).square().sum(dim=-1)

    def place(self, features: Tensor) -> Tensor:
        """float32 [..., D]: f(x); features that did not vary in the fit count nothing."""
        scaled = torch.where(self.deviation > 0, (features - self.mean) / self.deviation.clamp(min=1e-12), 0.0)
        placed: Tensor = self.map(scaled)
        return placed

    def fit_user(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """float32 [K]: the weights W_u of a new user from pairs float32 [M, F]; nothing else changes.

        No pairs give zeros, the mean of all points.
        """
        logits = torch.zeros(self.config.points, requires_grad=True)
        if len(chosen) == 0:
            return logits.detach()
        with torch.no_grad():
            near, far, points = self.place(chosen), self.place(rejected), self.points.clone()
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(self.config.user_steps):
            ideal = torch.softmax(logits, dim=0) @ points
            lost = bradley_terry(-(near - ideal).square().sum(-1), -(far - ideal).square().sum(-1))
            optimizer.zero_grad()
            torch.autograd.backward(lost.mean() + self.config.user_penalty * logits.square().sum())
            optimizer.step()
        return logits.detach()

    @torch.no_grad()
    def mixture(self, user_logits: Tensor) -> Tensor:
        """float32 [..., K]: shares of the points, together 1."""
        return torch.softmax(user_logits, dim=-1)
