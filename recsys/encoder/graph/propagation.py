"""Sparse matrices of graph encoders and their product with trained vectors. Knows no content and no losses.

Shapes: U users, N items, d width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recsys.data import IntArray, Sequences
from recsys.errors import DataError


class SparseProduct:
    """Multiplies dense float32 [n, d] from the left with a fixed sparse [m, n]; differentiable in the dense one.

    By scipy: on one core as quick as torch's CSR kernels or quicker, and torch's own backward would transpose the
    matrix at every step.
    """

    def __init__(self, matrix: sparse.csr_array) -> None:
        self.matrix = sparse.csr_array(matrix.astype(np.float32))
        self.transposed = sparse.csr_array(self.matrix.T)

    def __call__(self, dense: Tensor) -> Tensor:
        """float32 [m, d] of [n, d]."""
        product: Tensor = _Product.apply(dense, self.matrix, self.transposed)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: sparse.csr_array, transposed: sparse.csr_array) -> Tensor:
        ctx.transposed = transposed
        return torch.from_numpy(matrix @ dense.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.from_numpy(ctx.transposed @ gradients[0].contiguous().numpy()), None, None


def interaction_matrix(train: Sequences, num_items: int) -> tuple[sparse.csr_array, IntArray]:
    """Who consumed what, repeats counted once.

    Returns:
        matrix: float32 0/1 [U, num_items], a row for each user with at least one item.
        users: int64 [U], ascending: whose rows they are.

    Raises:
        DataError: there is no interaction, or an item is beyond `num_items`.
    """
    if len(train.items) == 0:
        raise DataError("the graph encoder needs training interactions, found none; check the split")
    if train.items.min() < 0 or train.items.max() >= num_items:
        raise DataError(
            f"training items must be between 0 and {num_items - 1}, found {train.items.min()} to {train.items.max()}"
        )
    users, rows = np.unique(np.repeat(train.users, train.lengths), return_inverse=True)
    ones = np.ones(len(rows), dtype=np.float32)
    matrix = sparse.csr_array((ones, (rows, train.items)), shape=(len(users), num_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix, users.astype(np.int64)


def symmetric_normalised(matrix: sparse.csr_array) -> sparse.csr_array:
    """D^-1/2 A D^-1/2 of a symmetric A with degrees D; rows without entries stay empty."""
    scale = sparse.diags_array(_inverse(degrees(matrix)) ** 0.5)
    return sparse.csr_array(scale @ matrix @ scale)


def row_normalised(matrix: sparse.csr_array) -> sparse.csr_array:
    """D^-1 A: rows sum to 1; those without entries stay empty."""
    return sparse.csr_array(sparse.diags_array(_inverse(degrees(matrix))) @ matrix)


def user_item_graph(interactions: sparse.csr_array) -> sparse.csr_array:
    """[U + N, U + N]: normalised adjacency of users, then items, from 0/1 [U, N] (LightGCN, arXiv 2002.02126)."""
    blocks = sparse.block_array([[None, interactions], [interactions.T, None]], format="csr")
    return symmetric_normalised(sparse.csr_array(blocks))


def degrees(matrix: sparse.csr_array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """float64 [n]: row sums."""
    return np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()


def _inverse(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 / values, and 0 for 0."""
    inverse: np.ndarray[Any, np.dtype[np.float64]] = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return inverse
