"""One reward from several kinds of feedback that do not agree: MORE (arXiv 2312.07401).

Each step weighs the sources by the point of least norm in the convex hull of their gradients: the direction in which
no source loses. Gradients are averaged over steps and scaled to unit length, so that neither a source with many pairs
nor one with large errors decides alone; the loss is sum_i (number of sources * lambda_i) * loss_i.

Shapes: T sources, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from recsys.alignment.reward_models.head import HeadConfig, RewardHead, bradley_terry, row_batches


class MultiSourceConfig(HeadConfig):
    """A head, and how it is trained on several sources."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the running mean of each source's gradient."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourcePairs:
    """Pairs from one kind of feedback: clicks, likes, finished films."""

    chosen: Tensor
    """float32 [M, F]."""
    rejected: Tensor
    """float32 [M, F]."""


def min_norm_weights(gradients: Tensor, steps: int = 250, tolerance: float = 1e-9) -> Tensor:
    """float [T] on the simplex: argmin over lambda of || sum_i lambda_i g_i || for gradients float [T, P].

    Frank-Wolfe with exact line search (Sener & Koltun 2018, arXiv 1810.04650, algorithm 2), with away steps, which
    keep it from creeping where the answer lies on a face of the simplex; for two gradients it is exact in one step.

    Raises:
        ValueError: no gradients.
    """
    if gradients.ndim != 2 or len(gradients) == 0:
        raise ValueError(f"gradients must be [sources, parameters] and not empty, found {list(gradients.shape)}")
    products = (gradients.double() @ gradients.double().T).cpu()
    weights = torch.zeros(len(products), dtype=torch.float64)
    weights[products.diagonal().argmin()] = 1.0
    for _ in range(steps):
        slopes = products @ weights
        value = weights @ slopes
        best = int(slopes.argmin())
        worst = int(torch.where(weights > 0, slopes, -torch.inf).argmax())
        towards, away = value - slopes[best], slopes[worst] - value
        if towards <= tolerance * products.diagonal().max():
            break
        direction = -weights.clone() if towards >= away else weights.clone()
        longest = 1.0
        if towards >= away:
            direction[best] += 1
        else:
            direction[worst] -= 1
            longest = float(weights[worst] / (1 - weights[worst]))
        curvature = direction @ products @ direction
        step = longest if curvature <= 0 else min(float(-(slopes @ direction) / curvature), longest)
        weights = (weights + step * direction).clamp(min=0)
        weights /= weights.sum()
    return weights.to(gradients)


def fit_sources(head: RewardHead, sources: Mapping[str, SourcePairs], config: MultiSourceConfig) -> dict[str, float]:
    """Train a head on pairs of all sources together; returns each source's mean weight, which sum to 1.

    A step takes a batch of each source; a smaller source begins again sooner.

    Raises:
        ValueError: no source, or one without pairs.
    """
    empty = [name for name, pairs in sources.items() if len(pairs.chosen) == 0]
    if not sources or empty:
        raise ValueError(f"sources need pairs; found {len(sources)} sources, without any: {empty}")
    every = list(sources.values())
    head.learn_standard(torch.cat([rows for pairs in every for rows in (pairs.chosen, pairs.rejected)]))
    parameters = list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    sizes = [parameter.numel() for parameter in parameters]
    running = torch.zeros(len(every), sum(sizes))
    used = torch.zeros(len(every))
    for rows in row_batches(max(len(pairs.chosen) for pairs in every), config):
        gradients = []
        for pairs in every:
            own = rows % len(pairs.chosen)
            loss = bradley_terry(head(pairs.chosen[own]), head(pairs.rejected[own])).mean()
            parts = torch.autograd.grad(loss, parameters)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        fresh = torch.stack(gradients)
        running = config.momentum * running + (1 - config.momentum) * fresh
        weights = min_norm_weights(functional.normalize(running, dim=1))
        used += weights / config.steps
        combined = len(every) * weights @ fresh
        for parameter, gradient in zip(parameters, torch.split(combined, sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        schedule.step()
    return dict(zip(sources, used.tolist(), strict=True))
