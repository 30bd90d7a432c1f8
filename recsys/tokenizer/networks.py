"""Small things that trained tokenizers share: networks, batches, the learning rate. Knows no codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Scalar: the sum over dimensions of [B, d], the mean over the batch.

    Sums, because means over widths that differ (768 inputs, 32 code dimensions) would weigh the terms by chance.
    """
    return (predicted - target).square().sum(dim=1).mean()


def endless_batches(num_rows: int, batch_size: int) -> Iterator[Tensor]:
    """Endless int64 [batch_size] rows; each pass is a new order, without its incomplete last batch."""
    while True:
        order = torch.randperm(num_rows)[: num_rows - num_rows % batch_size]
        yield from torch.split(order, batch_size)


def cosine_factor(progress: float) -> float:
    """1 before `progress` 0, then half a cosine down to 0 at 1: a factor of the peak learning rate."""
    return 0.5 * (1 + math.cos(math.pi * max(progress, 0.0)))
