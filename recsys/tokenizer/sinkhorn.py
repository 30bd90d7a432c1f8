"""Balanced assignment by optimal transport: the uniform semantic mapping of LC-Rec (arXiv 2311.09049, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 0.003
ITERATIONS = 50


def uniform_assignment(distances: Tensor, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Transport plan of a batch onto the codes in which all codes carry the same mass.

    Args:
        distances: float [B, K], squared distances; their scale does not matter.
        epsilon: entropic regularisation, in units of half the distances' range.
        iterations: Sinkhorn-Knopp steps. The last one normalises the columns, so the rows are not exact.

    Returns:
        float64 [B, K], every column sums to B / K; the assignment is its argmax over a row. Equal rows stay equal,
        so exact duplicates always share a code.
    """
    batch_size, num_codes = distances.shape
    low, high = distances.min(), distances.max()
    middle = (high + low) / 2
    scaled = ((distances - middle) / (high - middle + 1e-5)).double()
    plan = torch.exp(-scaled / epsilon)
    plan /= plan.sum()
    for _ in range(iterations):
        plan /= plan.sum(dim=1, keepdim=True) * batch_size
        plan /= plan.sum(dim=0, keepdim=True) * num_codes
    return plan * batch_size
