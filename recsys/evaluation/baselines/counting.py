"""Sparse matrices behind the counting baselines: who had what, which item followed which, how recent it was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.baselines.ranking import FloatArray


def membership(sequences: Sequences, num_items: int) -> sparse.csr_array:
    """float32 [num_sequences, num_items]: 1 where a sequence holds the item, however often."""
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    matrix = sparse.csr_array(
        (np.ones(len(rows), dtype=np.float32), (rows, sequences.items)), shape=(len(sequences), num_items)
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def transitions(sequences: Sequences, num_items: int, max_distance: int, decay: float) -> sparse.csr_array:
    """float32 [num_items, num_items]: sum of `decay ** (distance - 1)` over the times column followed row.

    Distances from 1 to `max_distance` within a sequence count; an item that follows itself does not.
    """
    counts = sparse.csr_array((num_items, num_items), dtype=np.float32)
    for distance in range(1, max_distance + 1):
        earlier, later = sequences.apart(distance)
        weights = np.full(len(earlier), decay ** (distance - 1), dtype=np.float32)
        counts = counts + sparse.csr_array((weights, (earlier, later)), shape=(num_items, num_items))
    return sparse.csr_array(counts)


def recency_weights(histories: Sequences, num_items: int, decay: float) -> sparse.csr_array:
    """float32 [B, num_items]: `decay ** age` summed over an item's occurrences; the last item has age 0."""
    lengths = histories.lengths
    age = np.repeat(histories.offsets[1:] - 1, lengths) - np.arange(histories.offsets[0], histories.offsets[-1])
    rows = np.repeat(np.arange(len(histories)), lengths)
    return sparse.csr_array(
        ((decay**age).astype(np.float32), (rows, histories.items)), shape=(len(histories), num_items)
    )


def scale_rows(matrix: sparse.csr_array, factors: npt.NDArray[np.floating]) -> sparse.csr_array:
    """Row i times `factors[i]`."""
    scaled = matrix.copy()
    scaled.data *= np.repeat(factors, np.diff(matrix.indptr)).astype(np.float32)
    return scaled


def evidence_then_popularity(weights: sparse.csr_array, related: sparse.csr_array, popularity: IntArray) -> FloatArray:
    """float32 [B, num_items]: `weights @ related` where positive; the items without evidence follow by popularity.

    Args:
        weights: [B, num_items], what a history says about itself.
        related: [num_items, num_items], non-negative.
        popularity: int64 [num_items], interactions in training.
    """
    scores = np.asarray((weights @ related).toarray(), dtype=np.float32)
    # In [-1, 0): below any evidence, and 0 < popularity differences stay visible.
    fallback = (popularity / (popularity.max(initial=0) + 1) - 1).astype(np.float32)
    return np.where(scores > 0, scores, fallback)


def item_counts(sequences: Sequences, num_items: int) -> IntArray:
    """int64 [num_items]: how often each item occurs."""
    return np.bincount(sequences.items, minlength=num_items).astype(np.int64)
