"""From one batch and its embeddings to the loss. Knows which embedding stands for what, not how it was made.

Shape legend: M distinct items of the batch, B users, D width. The embeddings of a batch are one matrix: M items, then
B profiles (when the user view has them), so that a text needed twice is encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recsys.data import IntArray, Sequences
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.alignment.objective import item_item_loss, user_item_loss
from recsys.encoder.alignment.pairs import Batch, PairSampler, pasts


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Which items a batch needs, and where each is used."""

    items: IntArray
    """int64 [M], all different."""
    histories: Sequences
    """B histories: what lies before each user's positive."""
    candidates: Tensor
    """int64 [B + H]: places in `items`."""
    pairs: Tensor
    """int64 [P, 2]: places in `items`."""
    means: Tensor | None
    """float [B, M]: each row averages the latest items of a history; None when no view needs it."""


def plan_batch(batch: Batch, train: Sequences, config: AlignmentConfig) -> Plan:
    """Collect the items of a batch over `train`."""
    histories = pasts(train, batch.users, batch.cuts)
    needed = [batch.candidates, batch.pairs.ravel()]
    owner = None
    if config.user_view != "profile":
        from_end = np.repeat(histories.offsets[1:], histories.lengths) - np.arange(len(histories.items))
        latest = from_end <= config.max_history
        owner = np.repeat(np.arange(len(histories)), histories.lengths)[latest]
        needed.append(histories.items[latest])
    items, places = np.unique(np.concatenate(needed), return_inverse=True)
    candidate_places, pair_places, history_places = np.split(
        places, np.cumsum([len(batch.candidates), batch.pairs.size])
    )
    means = None
    if owner is not None:
        counts = np.zeros((len(histories), len(items)), dtype=np.float32)
        np.add.at(counts, (owner, history_places), 1.0)
        means = torch.from_numpy(counts / counts.sum(axis=1, keepdims=True))
    return Plan(
        items=items,
        histories=histories,
        candidates=torch.from_numpy(candidate_places),
        pairs=torch.from_numpy(pair_places.reshape(-1, 2)),
        means=means,
    )


def batch_loss(embeddings: Tensor, plan: Plan, batch: Batch, sampler: PairSampler, config: AlignmentConfig) -> Tensor:
    """Scalar: users with items, averaged over the user views, plus `item_weight` times items with items.

    Args:
        embeddings: float [M, D], or [M + B, D] with the profiles of the B users below, when the view has profiles.
        plan: of this batch.
        batch: the indices and masks.
        sampler: knows how often each item is drawn.
        config: view, temperature, weights.
    """
    device = embeddings.device
    items = functional.normalize(embeddings[: len(plan.items)], dim=1)
    views = []
    if plan.means is not None:
        views.append(plan.means.to(device) @ items)
    if config.user_view != "items":
        views.append(embeddings[len(plan.items) :])
    candidates = functional.embedding(plan.candidates.to(device), items)
    known = torch.from_numpy(batch.known).to(device)
    log_rate = None
    if config.logq:
        rates = sampler.log_rate[batch.candidates]
        rates[len(batch.users) :] = 0.0  # mined negatives are not drawn by popularity
        log_rate = torch.from_numpy(rates).to(device)
    losses = [
        user_item_loss(users, candidates, known, temperature=config.temperature, log_rate=log_rate) for users in views
    ]
    loss = torch.stack(losses).mean()
    if len(plan.pairs) == 0:
        return loss
    log_rates = None
    if config.logq:
        left, right = (torch.from_numpy(sampler.pair_log_rate[side]).to(device) for side in batch.pairs.T)
        log_rates = (left, right)
    sides = functional.embedding(plan.pairs.to(device), items)
    pairs_known = torch.from_numpy(batch.pairs_known).to(device)
    return loss + config.item_weight * item_item_loss(
        sides[:, 0], sides[:, 1], pairs_known, temperature=config.temperature, log_rates=log_rates
    )
