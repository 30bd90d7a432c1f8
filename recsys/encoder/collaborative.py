"""Item vectors out of who was consumed near whom, and their fusion with text vectors. No text, no training loop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import svds

from recsys.data.sequences import Sequences
from recsys.errors import ConfigError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool]


def cooccurrence_embeddings(
    train: Sequences, num_items: int, dim: int = 64, window: int = 3
) -> tuple[FloatArray, BoolArray]:
    """Spectral vectors of the co-occurrence of items in training histories.

    Counts pairs at most `window` positions apart, turns the counts into positive pointwise mutual information
    (PPMI), and takes U sqrt(S) of its truncated SVD: the factorization that skip-gram approximates (Levy and
    Goldberg, 2014). Give it TRAINING sequences only: the test transitions would leak into the codes.

    Returns:
        vectors: float32 [num_items, dim], zero for items without a neighbour.
        covered: bool [num_items], which items have a vector.

    Raises:
        ConfigError: `dim` is not below `num_items`.
    """
    if not 1 <= dim < num_items:
        raise ConfigError(f"encoder.collaborative_dim is {dim}; must be between 1 and {num_items - 1} (items - 1)")
    counts = _cooccurrence_counts(train, num_items, window)
    covered = np.asarray(counts.sum(axis=1)).ravel() > 0
    if not covered.any():
        return np.zeros((num_items, dim), dtype=np.float32), covered
    ppmi = _positive_pmi(counts)
    # A fixed start makes the iteration deterministic.
    left, values, _ = svds(ppmi, k=dim, v0=np.ones(num_items), solver="arpack")
    order = np.argsort(-values)
    vectors = left[:, order] * np.sqrt(np.maximum(values[order], 0.0))
    vectors[~covered] = 0.0
    return vectors.astype(np.float32), covered


def fuse(text: FloatArray, collaborative: FloatArray, weight: float) -> FloatArray:
    """float32 [n, text_dim + collaborative_dim]: `[unit(text) ; weight * unit(collaborative)]`.

    A zero row stays zero: an item without interactions is placed by its text alone.
    """
    return np.concatenate([_unit_rows(text), weight * _unit_rows(collaborative)], axis=1).astype(np.float32)


def _cooccurrence_counts(train: Sequences, num_items: int, window: int) -> sparse.csr_array:
    """Symmetric float64 [num_items, num_items] without diagonal."""
    owner = np.repeat(np.arange(len(train)), train.lengths)
    rows, columns = [], []
    for distance in range(1, window + 1):
        same = owner[distance:] == owner[:-distance]
        rows.append(train.items[:-distance][same])
        columns.append(train.items[distance:][same])
    row, column = np.concatenate(rows), np.concatenate(columns)
    different = row != column
    row, column = row[different], column[different]
    ones = np.ones(2 * len(row))
    both = (np.concatenate([row, column]), np.concatenate([column, row]))
    return sparse.coo_array((ones, both), shape=(num_items, num_items)).tocsr()


def _positive_pmi(counts: sparse.csr_array) -> sparse.csr_array:
    """max(0, ln p(i, j) / (p(i) p(j))) on the non-zero cells."""
    cells = counts.tocoo()
    marginal = np.asarray(counts.sum(axis=1)).ravel()
    pmi = np.log(cells.data * marginal.sum() / (marginal[cells.row] * marginal[cells.col]))
    return sparse.coo_array((np.maximum(pmi, 0.0), (cells.row, cells.col)), shape=counts.shape).tocsr()


def _unit_rows(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit
