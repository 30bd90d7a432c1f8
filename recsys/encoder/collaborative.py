"""Item vectors out of who was consumed near whom, and their fusion with text vectors. No text, no training loop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from scipy.sparse.linalg import aslinearoperator, eigsh

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ConfigError

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool]

_FUSED_TOGETHER = 1 << 16


def cooccurrence_embeddings(
    train: Sequences, num_items: int, dim: int = 64, window: int = 3
) -> tuple[FloatArray, BoolArray]:
    """Spectral vectors of the co-occurrence of items in training histories.

    Counts pairs at most `window` positions apart, turns the counts into positive pointwise mutual information
    (PPMI), and takes U sqrt(S) of its truncated SVD: the factorization that skip-gram approximates (Levy and
    Goldberg, 2014). Give it TRAINING sequences only: the test transitions would leak into the codes.

    Returns:
        vectors: float32 [num_items, dim], zero for items without a neighbour; the same for the same input.
            Columns by falling singular value; those beyond the rank of the PPMI are zero.
        covered: bool [num_items], which items have a vector.

    Raises:
        ConfigError: `dim` is not below `num_items`.
    """
    if not 1 <= dim < num_items:
        raise ConfigError(f"encoder.collaborative.dim is {dim}; must be between 1 and {num_items - 1} (items - 1)")
    counts = cooccurrence_counts(train, num_items, window)
    covered = np.asarray(counts.sum(axis=1)).ravel() > 0
    if not covered.any():
        return np.zeros((num_items, dim), dtype=np.float32), covered
    left, values = _truncated_svd(_positive_pmi(counts), dim)
    vectors = left * np.sqrt(values)
    vectors[~covered] = 0.0
    return vectors.astype(np.float32), covered


def fuse(*parts: tuple[FloatArray, float]) -> FloatArray:
    """float32 [n, sum of the parts' widths]: the unit rows of each part times its weight, side by side.

    A zero row stays zero: an item without interactions is placed by its text alone.
    """
    num_items, ends = len(parts[0][0]), np.cumsum([vectors.shape[1] for vectors, _ in parts])
    fused = np.empty((num_items, ends[-1]), dtype=np.float32)
    for (vectors, weight), end in zip(parts, ends.tolist(), strict=True):
        # In slices: whole, the parts of millions of items are in memory four times.
        for start in range(0, num_items, _FUSED_TOGETHER):
            rows = slice(start, start + _FUSED_TOGETHER)
            fused[rows, end - vectors.shape[1] : end] = weight * unit_rows(vectors[rows])
    return fused


def item_pairs(train: Sequences, window: int) -> IntArray:
    """int64 [P, 2]: different items at most `window` positions apart in a sequence; once for each such place."""
    return np.concatenate([np.stack(train.apart(distance), axis=1) for distance in range(1, window + 1)])


def cooccurrence_counts(train: Sequences, num_items: int, window: int) -> sparse.csr_array:
    """float64 [num_items, num_items], symmetric, without diagonal: how often two items were that near."""
    pairs = item_pairs(train, window)
    ones = np.ones(2 * len(pairs))
    both = (np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]]))
    return sparse.coo_array((ones, both), shape=(num_items, num_items)).tocsr()


def _positive_pmi(counts: sparse.csr_array) -> sparse.csr_array:
    """max(0, ln p(i, j) / (p(i) p(j))) on the non-zero cells."""
    cells = counts.tocoo()
    marginal = np.asarray(counts.sum(axis=1)).ravel()
    pmi = np.log(cells.data * marginal.sum() / (marginal[cells.row] * marginal[cells.col]))
    return sparse.coo_array((np.maximum(pmi, 0.0), (cells.row, cells.col)), shape=counts.shape).tocsr()


def _truncated_svd(matrix: sparse.csr_array, rank: int) -> tuple[DoubleArray, DoubleArray]:
    """Left singular vectors float64 [n, rank] and singular values float64 [rank], largest first.

    Values that are zero but for rounding come as zero, since their vectors are any basis of the null space.
    """
    size = matrix.shape[0]
    operator = aslinearoperator(matrix)
    # scipy's `svds` does the same but leaves the random restarts without a seed: ARPACK needs them, whatever the
    # start, once the start's Krylov space is exhausted (few distinct singular values, unconnected communities).
    _, basis = eigsh(operator.H @ operator, k=rank, v0=np.ones(size), rng=np.random.default_rng(0))
    basis, _ = np.linalg.qr(basis)  # clustered eigenvalues leave it not quite orthonormal
    left, values, _ = linalg.svd(matrix @ basis, full_matrices=False)
    values[values <= size * np.finfo(np.float64).eps * values[0]] = 0.0
    return left, values


def unit_rows(vectors: FloatArray) -> FloatArray:
    """float32 [n, D] of unit norm; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return unit
