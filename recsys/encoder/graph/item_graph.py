"""Graphs between items: neighbours by content, companions by behaviour, and their blend (SIGER, arXiv 2508.06154).

The blend's formulas are derived for this implementation, not the paper's. Knows no model.

Shapes: N items, D width of a modality, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from recsys.data import IntArray
from recsys.encoder.collaborative import FloatArray, unit_rows
from recsys.encoder.graph.config import SIGERConfig
from recsys.encoder.graph.propagation import degrees, symmetric_normalised
from recsys.encoder.modalities import Modality

# Of a block of cosines.
_BLOCK_CELLS = 1 << 22


def nearest_items(queries: FloatArray, modality: Modality, k: int) -> tuple[IntArray, FloatArray]:
    """The catalogue's items nearest to each query by cosine.

    Args:
        queries: float32 [n, D].
        modality: of the catalogue; items that lack it are nobody's neighbours.
        k: how many; fewer if fewer items have the modality.

    Returns:
        items: int64 [n, k'], nearest first, of equally near ones the lower index.
        cosines: float32 [n, k'].
    """
    candidates = np.flatnonzero(modality.present)
    count = min(k, len(candidates))
    targets = unit_rows(modality.vectors[candidates])
    items = np.empty((len(queries), count), dtype=np.int64)
    cosines = np.empty((len(queries), count), dtype=np.float32)
    block = max(1, _BLOCK_CELLS // len(candidates))
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        similar = unit_rows(queries[part]) @ targets.T
        # Rounded, so that exact duplicates tie whatever the order in which a product was summed; ties by index.
        key = np.rint(similar * 1e5).astype(np.int64) * len(candidates) - np.arange(len(candidates))
        top = np.argpartition(key, len(candidates) - count, axis=1)[:, len(candidates) - count :]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(key, top, axis=1), axis=1), axis=1)
        items[part] = candidates[top]
        cosines[part] = np.take_along_axis(similar, top, axis=1)
    return items, cosines


def content_graph(modality: Modality, k: int) -> sparse.csr_array:
    """[N, N]: cosine of each item to its k nearest, itself included; empty rows for items without the modality."""
    rows = np.flatnonzero(modality.present)
    nearest, cosines = nearest_items(modality.vectors[rows], modality, k)
    # Among exact duplicates an item may not be among its own nearest, by the order of indices.
    missing = ~(nearest == rows[:, None]).any(axis=1)
    nearest[missing, -1] = rows[missing]
    cosines[nearest == rows[:, None]] = 1.0
    cells = (np.repeat(rows, nearest.shape[1]), nearest.ravel())
    size = modality.num_items
    # A cosine of exactly 0 would be no edge; far below any that matters.
    data = np.maximum(cosines.ravel().astype(np.float64), 1e-6)
    return sparse.csr_array((data, cells), shape=(size, size))


def neighbour_mean(modality: Modality, k: int) -> sparse.csr_array:
    """[N, N]: 1/k at each item's k nearest, itself included (CM3, arXiv 2508.01226: A_item of one modality)."""
    graph = content_graph(modality, k)
    graph.data[:] = 1.0
    counts = degrees(graph)
    graph.data /= np.repeat(counts, np.diff(graph.indptr))
    return graph


def companions(interactions: sparse.csr_array) -> sparse.csr_array:
    """[N, N]: how many users have both items, from 0/1 [U, N]; zero diagonal."""
    counts = sparse.csr_array((interactions.T @ interactions).astype(np.float64))
    counts.setdiag(0.0)
    counts.eliminate_zeros()
    return counts


def collaborative_graph(interactions: sparse.csr_array, config: SIGERConfig) -> sparse.csr_array:
    """[N, N]: the strongest companions of each item, symmetric and normalised."""
    counts = companions(interactions)
    if config.collaborative_counts == "ppmi":
        marginal = degrees(counts)
        cells = counts.tocoo()
        gain = np.log(cells.data * marginal.sum() / (marginal[cells.row] * marginal[cells.col]))
        strength = sparse.csr_array((np.maximum(gain, 0.0), (cells.row, cells.col)), shape=counts.shape)
        strength.eliminate_zeros()
    else:
        strength = symmetric_normalised(counts)
    kept = strongest(strength, config.collaborative_neighbours)
    return symmetric_normalised(sparse.csr_array(kept.maximum(kept.T)))


def semantic_graph(modality: Modality, interactions: sparse.csr_array, config: SIGERConfig) -> sparse.csr_array:
    """[N, N]: neighbours by content, symmetric and normalised, pruned as `config` says."""
    cosines = content_graph(modality, config.neighbours)
    if config.prune_quantile > 0:
        cells = cosines.tocoo()
        between = cells.row != cells.col
        threshold = np.quantile(cells.data[between], config.prune_quantile) if between.any() else 0.0
        together = np.asarray(companions(interactions)[cells.row, cells.col]).ravel() > 0
        kept = ~between | together | (cells.data >= threshold)
        cosines = sparse.csr_array((cells.data[kept], (cells.row[kept], cells.col[kept])), shape=cosines.shape)
    cosines.data[:] = 1.0
    return symmetric_normalised(sparse.csr_array(cosines.maximum(cosines.T)))


def enhanced_graph(semantic: sparse.csr_array, collaborative: sparse.csr_array, share: float) -> sparse.csr_array:
    """share * semantic + (1 - share) * collaborative, both normalised [N, N]."""
    return sparse.csr_array(share * semantic + (1 - share) * collaborative)


def strongest(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """The k largest entries of each row, of equal ones those with the lower column."""
    cells = matrix.tocoo()
    order = np.lexsort((cells.col, -cells.data, cells.row))
    row = cells.row[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = order[place < k]
    return sparse.csr_array((cells.data[kept], (cells.row[kept], cells.col[kept])), shape=matrix.shape)


def weights_of(modalities: Sequence[Modality], weights: dict[str, float]) -> list[float]:
    """One weight a modality, summing to 1; even if `weights` is empty. The config's keys have been checked."""
    given = [weights.get(modality.name, 0.0) if weights else 1.0 for modality in modalities]
    return [weight / sum(given) for weight in given]


def fill_from_neighbours(modalities: Sequence[Modality], interactions: sparse.csr_array, k: int) -> sparse.csr_array:
    """[N, N] that keeps what was trained and fills in the rest: 1 on the diagonal for items with an interaction.

    The row of an item without one is the mean of its k - 1 nearest items with one (at least one), averaged over the
    modalities it has; empty if it has none.
    """
    size = interactions.shape[1]
    warm = np.asarray(interactions.sum(axis=0)).ravel() > 0
    filled = sparse.diags_array(warm.astype(np.float64), format="csr")
    cold = np.flatnonzero(~warm)
    known = [modality for modality in modalities if (modality.present & warm).any()]
    if len(cold) == 0 or not known:
        return sparse.csr_array(filled)
    has = np.stack([modality.present[cold] for modality in known])
    for modality, present in zip(known, has, strict=True):
        rows = cold[present]
        source = Modality.from_vectors(modality.name, modality.vectors, modality.present & warm)
        nearest, _ = nearest_items(modality.vectors[rows], source, max(k - 1, 1))
        weight = 1.0 / (nearest.shape[1] * has.sum(axis=0)[present])
        cells = (np.repeat(rows, nearest.shape[1]), nearest.ravel())
        filled = filled + sparse.csr_array((np.repeat(weight, nearest.shape[1]), cells), shape=(size, size))
    return sparse.csr_array(filled)
