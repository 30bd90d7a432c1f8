"""TIGER's way to tell colliding items apart: one more code, which counts them (arXiv 2305.05065, section 3.1).

The counting level is a codebook of zero vectors: it adds nothing to what the codes stand for, every item's nearest code
on it is 0, and everything that sums codewords is right without knowing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.residual import DoubleArray, FloatArray, row_blocks, summed_codes
from recsys.tokenizer.semantic_ids import row_numbers


def ordinal_codebook(codes: IntArray, codebooks: Sequence[FloatArray]) -> FloatArray:
    """Zeros, float32 [K, d]: the level that counts the items which share their int64 [n, L] codes.

    K is the size of the last codebook or twice the largest group, whichever is more, so that a group can double before
    new items find it full.
    """
    largest = int(np.unique(row_numbers(codes), return_counts=True)[1].max())
    last = codebooks[-1]
    return np.zeros((max(len(last), 2 * largest), last.shape[1]), dtype=np.float32)


def count_within_groups(
    codes: IntArray, latents: DoubleArray, codebooks: Sequence[FloatArray], occupied: IntArray
) -> IntArray:
    """int64 [n, L]: the last code is the item's rank among those with the same other codes.

    The item closest to its codes gets 0, among equals the one with the lower row; ranks that `occupied` (int64 [m, L])
    holds are passed over.

    Raises:
        DataError: a group has more items than the last level has codes.
    """
    num_items, size = len(codes), len(codebooks[-1])
    prefixes = row_numbers(np.concatenate([codes[:, :-1], occupied[:, :-1]]))
    group = np.unique(prefixes, return_inverse=True)[1].astype(np.int64)
    totals = np.bincount(group)
    if totals.max() > size:
        full = int(totals.argmax())
        shared = np.concatenate([codes, occupied])[group == full][0, :-1].tolist()
        raise DataError(
            f"{int(totals[full])} items share the codes {shared}, but the counting level has {size}; fit the tokenizer "
            'again, with more levels or a larger codebook_size, or with tokenizer.collisions="assignment"'
        )
    distance = np.empty(num_items)
    for part in row_blocks(*latents.shape):
        distance[part] = np.square(latents[part] - summed_codes(codes[part, :-1], codebooks)).sum(axis=1)
    order = np.lexsort((np.arange(num_items), distance, group[:num_items]))
    sorted_group = group[order]
    rank = np.arange(num_items) - np.searchsorted(sorted_group, sorted_group, side="left")
    codes = codes.copy()
    codes[order, -1] = rank
    # Only groups that have old members need to look for gaps.
    old = group[num_items:]
    for shared_group in np.intersect1d(sorted_group, old):
        free = np.setdiff1d(np.arange(size), occupied[old == shared_group, -1])
        start, end = np.searchsorted(sorted_group, [shared_group, shared_group + 1])
        codes[order[start:end], -1] = free[: end - start]
    return codes
