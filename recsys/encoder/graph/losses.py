"""Losses of graph encoders. Pure functions of vectors.

Shapes: B vectors of a batch, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Of the Gaussian potential exp(-t ||a - b||^2), as in Wang and Isola (arXiv 2005.10242).
TEMPERATURE = 2.0


def alignment(users: Tensor, items: Tensor) -> Tensor:
    """Scalar: mean ||u - i||^2 of matching unit [B, d] rows (DirectAU, arXiv 2206.12811)."""
    return (users - items).square().sum(dim=1).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """Scalar: log mean over pairs a < b of exp(-t ||x_a - x_b||^2), of unit [B, d] rows; B >= 2."""
    return calibrated_uniformity(vectors, None)


def calibrated_uniformity(vectors: Tensor, similarity: Tensor | None) -> Tensor:
    """Scalar: uniformity that asks similar items for less distance (CM3, arXiv 2508.01226).

        log mean over a < b of exp(-t (||x_a - x_b||^2 - 2 + 2 s_ab))

    On the sphere that is log mean exp(2 t (cos_ab - s_ab)): a soft maximum of how much closer pairs are than their
    content justifies. With s = 1 it is `uniformity`, with s = 0 `uniformity` + 2 t.

    Args:
        vectors: unit float [B, d], B >= 2.
        similarity: float [B, B], symmetric; None = 1 everywhere.
    """
    excess = vectors @ vectors.T - (1.0 if similarity is None else similarity)
    size = len(vectors)
    # Both halves of the symmetric matrix without its diagonal: the mean over ordered pairs is that over a < b.
    diagonal = torch.eye(size, dtype=torch.bool, device=vectors.device)
    potential = (2 * TEMPERATURE * excess).exp().masked_fill(diagonal, 0.0)
    return (potential.sum() / (size * (size - 1))).log()


def info_nce(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Scalar: InfoNCE (arXiv 1807.03748) of cosines: row a of [B, d] belongs to row a, the others are negatives."""
    cosine = nn.functional.normalize(anchors, dim=1) @ nn.functional.normalize(positives, dim=1).T
    return nn.functional.cross_entropy(cosine / temperature, torch.arange(len(cosine), device=cosine.device))


def bpr(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Scalar: mean -log sigmoid(positive - negative) of [B] scores (BPR, arXiv 1205.2618)."""
    return nn.functional.softplus(negative_scores - positive_scores).mean()
