"""Scalar products of chosen pairs of rows, for which neither all pairs nor all gathered rows are held in memory."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag

# Two gathered blocks of this many rows stay in a core's cache, which is many times faster than one large gather. A GPU
# wants few large ones, of this many components.
_PAIRS, _COMPONENTS_ON_GPU = 2048, 2**27


def pair_dots(queries: Tensor, table: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """float32 [E]: queries[rows] . table[items], with gradients to both.

    Args:
        queries: float32 [R, D].
        table: float32 [N, D].
        rows: int64 [E], ascending.
        items: int64 [E].
    """
    return cast(Tensor, _PairDots.apply(queries, table, rows, items))  # type: ignore[no-untyped-call]


class _PairDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, table: Tensor, rows: Tensor, items: Tensor) -> Tensor:
        ctx.save_for_backward(queries, table, rows, items)
        size = max(_PAIRS, _COMPONENTS_ON_GPU // queries.shape[1]) if queries.is_cuda else _PAIRS
        blocks = zip(torch.split(rows, size), torch.split(items, size), strict=True)
        return torch.cat([(embedding(row, queries) * embedding(item, table)).sum(-1) for row, item in blocks])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, table, rows, items = ctx.saved_tensors
        (gradient,) = gradients
        by_item = items.argsort(stable=True)
        return (
            _weighted_sums(table, items, rows, gradient, len(queries)),
            _weighted_sums(queries, rows[by_item], items[by_item], gradient[by_item], len(table)),
            None,
            None,
        )


def _weighted_sums(table: Tensor, sources: Tensor, targets: Tensor, weights: Tensor, count: int) -> Tensor:
    """float32 [count, D]: for each target the sum of weight * table[source]; `targets` ascending."""
    starts = torch.searchsorted(targets, torch.arange(count, device=targets.device))
    return embedding_bag(sources, table, starts, mode="sum", per_sample_weights=weights)
