"""Vectors of user and item IDs, parted into taste and popularity (ICDM of DAS, arXiv 2508.10584).

A user's vector is [interest ; conformity], an item's is [property ; popularity]. The list of terms is the paper's as
secondary sources report it; its formulas were not at hand, so the forms of L_pop and L_orth and the negatives are ours:

    p_unb  = sigma(<c_u^int, c_i^pro>)       L_unb: in-batch softmax over the clicks, or BCE
    p_bias = sigma(<c_u^con, c_i^pop>)       L_bias: BCE, negatives drawn evenly from the catalogue
    L_pop  = 1 - cos(c_i^pop, b_i) + lambda_r (g(c_i^pop) - y_i)^2,   b_i = MLP(y_i); the same for users
    L_orth = mean cos^2(c_u^int, c_u^con) + mean cos^2(c_i^pro, c_i^pop)
    L      = L_unb + L_bias + lambda_p L_pop + lambda_o L_orth

y_i is log(1 + clicks), and y_u its mean over the user's items, standardised: interaction logs hold no impressions, of
which, as secondary sources report, the paper's features are also made. Its fused
vectors MLP(c^int + c^con) are left out: they serve its ranking model, and no loss of a tokenizer reads them. Without
`debias` the vectors are whole and L is L_unb alone.

Shapes: U users, N items, B rows, h width of a half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.networks import mlp
from recsys.tokenizer.residual import DoubleArray, FloatArray

_START_SCALE = 0.1
_TARGET_HIDDEN = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class BehaviourVectors:
    """What the behaviour model learned, for probes and for models downstream."""

    interest: FloatArray
    """float32 [U, h]."""
    property: FloatArray
    """float32 [N, h]."""
    conformity: FloatArray
    """float32 [U, h]; width 0 without debiasing."""
    popularity: FloatArray
    """float32 [N, h]; width 0 without debiasing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClickBatch:
    """Clicks and the negatives of each loss."""

    users: Tensor
    """int64 [B]."""
    items: Tensor
    """int64 [B]: clicked by `users`, row by row."""
    known: Tensor
    """bool [B, B]: user b clicked item c."""
    negatives: Tensor
    """int64 [B]: an item drawn evenly for each user."""
    is_negative: Tensor
    """bool [B]: whether the user really did not click it."""


class _Popularity(nn.Module):
    """Popularity supervision of one side: the target's vector b and the regression head g."""

    def __init__(self, target: DoubleArray, dim: int) -> None:
        super().__init__()
        spread = target.std()
        standard = (target - target.mean()) / (spread if spread > 0 else 1.0)
        self.target: Tensor
        self.register_buffer("target", torch.from_numpy(standard.astype(np.float32)))
        self.vector = mlp([1, _TARGET_HIDDEN, dim])
        self.head = nn.Linear(dim, 1)

    def loss(self, biased: Tensor, rows: Tensor, regression_weight: float) -> Tensor:
        """Scalar for the biased halves float [B, h] of `rows`."""
        target = self.target[rows].unsqueeze(1)
        agreement = nn.functional.cosine_similarity(biased, self.vector(target), dim=1)
        error: Tensor = (self.head(biased) - target).square().mean()
        return (1 - agreement).mean() + regression_weight * error


class BehaviourModel(nn.Module):
    """Two towers over raw IDs.

    Args:
        user_target: float64 [U], y of the users; item_target: float64 [N], y of the items.
        config: widths, weights and losses.
    """

    def __init__(self, user_target: DoubleArray, item_target: DoubleArray, config: DASConfig) -> None:
        super().__init__()
        self.config = config
        num_users, num_items, dim = len(user_target), len(item_target), config.behaviour_dim
        self.interest = nn.Embedding(num_users, dim)
        self.property = nn.Embedding(num_items, dim)
        tables = [self.interest, self.property]
        if config.debias:
            self.conformity = nn.Embedding(num_users, dim)
            self.popularity = nn.Embedding(num_items, dim)
            tables += [self.conformity, self.popularity]
            self.user_supervision = _Popularity(user_target, dim)
            self.item_supervision = _Popularity(item_target, dim)
        self.tables = [table.weight for table in tables]
        """The ID vectors, for an optimizer that decays them alone."""
        for weight in self.tables:
            nn.init.normal_(weight, std=_START_SCALE)

    def forward(self, clicks: ClickBatch, users: Tensor, items: Tensor) -> Tensor:
        """Scalar: the module's L for a batch of clicks.

        `users` and `items` (int64 [B']) are drawn evenly: popularity and orthogonality are judged on them, so that
        rows which are rarely clicked are supervised as much as popular ones.
        """
        config = self.config
        interest = self.interest(clicks.users)
        if config.click_loss == "softmax":
            unbiased = self._softmax(interest, self.property(clicks.items), clicks.known)
        else:
            unbiased = self._binary(interest, self.property, clicks)
        if not config.debias:
            return unbiased
        loss = unbiased + self._binary(self.conformity(clicks.users), self.popularity, clicks)
        conformity, popularity = self.conformity(users), self.popularity(items)
        if config.popularity_weight:
            supervision = self.user_supervision.loss(conformity, users, config.regression_weight)
            supervision = supervision + self.item_supervision.loss(popularity, items, config.regression_weight)
            loss = loss + config.popularity_weight * supervision
        if config.orthogonality_weight:
            overlap = _squared_cosine(self.interest(users), conformity)
            overlap = overlap + _squared_cosine(self.property(items), popularity)
            loss = loss + config.orthogonality_weight * overlap
        return loss

    @torch.no_grad()
    def vectors(self) -> BehaviourVectors:
        """What was learned, as arrays."""

        def rows(table: str, count: int) -> FloatArray:
            if not self.config.debias and table in ("conformity", "popularity"):
                return np.zeros((count, 0), dtype=np.float32)
            embedding: nn.Embedding = getattr(self, table)
            return embedding.weight.detach().clone().numpy()

        num_users, num_items = self.interest.num_embeddings, self.property.num_embeddings
        return BehaviourVectors(
            interest=rows("interest", num_users),
            property=rows("property", num_items),
            conformity=rows("conformity", num_users),
            popularity=rows("popularity", num_items),
        )

    def _softmax(self, users: Tensor, items: Tensor, known: Tensor) -> Tensor:
        """Which of the batch's items did each user click? Other items of the user are no wrong answer."""
        labels = torch.arange(len(users), device=users.device)
        logits = (users @ items.T).masked_fill(known & (labels[:, None] != labels), -torch.inf)
        return nn.functional.cross_entropy(logits, labels)

    def _binary(self, users: Tensor, table: nn.Embedding, clicks: ClickBatch) -> Tensor:
        """BCE of clicked against drawn items."""
        positive = nn.functional.softplus(-(users * table(clicks.items)).sum(dim=1)).mean()
        against = nn.functional.softplus((users * table(clicks.negatives)).sum(dim=1))
        weight = clicks.is_negative.to(against.dtype)
        return positive + (against * weight).sum() / weight.sum().clamp(min=1)


def _squared_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Scalar: cos^2 row by row, the mean."""
    return nn.functional.cosine_similarity(a, b, dim=1).square().mean()
