"""Fusion of unit vectors on the sphere: spherical Bézier curves (CM3, arXiv 2508.01226). Knows no items.

A Bézier curve is built by interpolating between its control points, then between the results, and so on (De
Casteljau). With straight lines that leaves the sphere; with great circles (slerp) it stays on it.

Shapes: n vectors, M control points, d width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

# Cosines beyond 1 - this are beyond what float32 resolves: the angle, and its gradient, would be rounding noise.
_CLAMP = 1e-6


def slerp(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Unit float [n, d] on the great circle between unit [n, d] vectors, `weight` (float [n], 0..1) at the first.

        sin(weight theta) / sin(theta) first + sin((1 - weight) theta) / sin(theta) second

    Vectors whose sin(theta) is too small to divide by (equal or opposite ones) are interpolated on the straight line
    and normalised. Halfway between opposite vectors there is no such point: the first is returned.
    Values and gradients are finite everywhere.
    """
    cosine = (first * second).sum(dim=1)
    degenerate = cosine.abs() > 1 - _CLAMP
    # The angle of degenerate pairs is not used, but a NaN in its gradient would survive the `where`.
    theta = torch.arccos(cosine.masked_fill(degenerate, 0.0).clamp(-1 + _CLAMP, 1 - _CLAMP))
    on_first = torch.where(degenerate, weight, torch.sin(weight * theta) / torch.sin(theta))
    on_second = torch.where(degenerate, 1 - weight, torch.sin((1 - weight) * theta) / torch.sin(theta))
    mixed = on_first[:, None] * first + on_second[:, None] * second
    vanished = mixed.detach().square().sum(dim=1) < _CLAMP
    return nn.functional.normalize(torch.where(vanished[:, None], first, mixed), dim=1)


def spherical_bezier(points: Tensor, present: Tensor, weight: Tensor) -> Tensor:
    """Unit float [n, d]: the point of each item's Bézier curve at parameter `weight` (float [n], 0..1).

    The curve's control points are those present, in their order: an absent one is as if it had never been there. A
    single one is returned as it is. Items without any get zeros.

    Args:
        points: float [n, M, d], unit where present.
        present: bool [n, M].
        weight: 1 is the first control point, 0 the last.
    """
    # Present ones first: then b_0 after r rounds depends on control points 0..r only.
    order = torch.argsort((~present).to(torch.int8), dim=1, stable=True)
    sorted_points = torch.gather(points, 1, order[:, :, None].expand_as(points))
    count = present.sum(dim=1)
    curve = list(sorted_points.unbind(dim=1))
    result = torch.where((count > 0)[:, None], curve[0], torch.zeros_like(curve[0]))
    for degree in range(1, len(curve)):
        curve = [slerp(before, after, weight) for before, after in itertools.pairwise(curve)]
        result = torch.where((count > degree)[:, None], curve[0], result)
    return result


def mean_fusion(points: Tensor, present: Tensor, weight: Tensor) -> Tensor:
    """The control of `spherical_bezier`, with its arguments: the normalised mean of the present points.

    With two points `weight` is that of the first; with more, all weigh the same.
    """
    shares = present.to(points.dtype)
    if points.shape[1] == 2:
        shares = shares * torch.stack([weight, 1 - weight], dim=1)
        # A lone point keeps its direction, whatever its weight.
        shares = torch.where((present.sum(dim=1) == 1)[:, None], present.to(points.dtype), shares)
    return nn.functional.normalize((points * shares[:, :, None]).sum(dim=1), dim=1)
