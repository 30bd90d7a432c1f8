"""From a score for every item to ranked lists: the one place where baselines mask, break ties and cut off."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray, Sequences

FloatArray = npt.NDArray[np.float32]


def rank_by_score(scores: FloatArray, k: int, *, seen: Sequences | None = None) -> IntArray:
    """The `k` best items of each row, best first; equal scores go to the lower item index.

    Args:
        scores: float32 [B, num_items]; no NaN. -inf means "never".
        k: length of the lists; may exceed the number of items.
        seen: B histories whose items are left out.

    Returns:
        int64 [B, k], unique in a row, -1 where a row has no more items.
    """
    scores = np.array(scores, dtype=np.float32)
    num_rows, num_items = scores.shape
    if seen is not None:
        scores[np.repeat(np.arange(num_rows), seen.lengths), seen.items] = -np.inf
    keys = _sortable_keys(scores)
    depth = min(k, num_items)
    best = np.argpartition(keys, num_items - depth, axis=1)[:, num_items - depth :] if depth < num_items else None
    if best is None:
        best = np.broadcast_to(np.arange(num_items), keys.shape)
    order = np.argsort(-np.take_along_axis(keys, best, axis=1), axis=1)
    ranked = np.take_along_axis(best, order, axis=1)
    lists = np.full((num_rows, k), -1, dtype=np.int64)
    lists[:, :depth] = np.where(np.isneginf(np.take_along_axis(scores, ranked, axis=1)), -1, ranked)
    return lists


def _sortable_keys(scores: FloatArray) -> IntArray:
    """int64 of the same shape, all different in a row, ordered by score and then by descending item index.

    The bits of a float32 order like an integer once those of negative numbers are flipped; the item index fills
    the lower half of the key. Partial sorting is then exact: it has no ties to break its own way.
    """
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 makes -0.0 equal 0.0
    ordered = np.where(bits < 0, np.int64(-(2**31)) - bits - 1, bits)
    return np.asarray((ordered << 32) - np.arange(scores.shape[1]), dtype=np.int64)
