"""How much alike items are by their embeddings: what evidence for a list, and its diversity, go by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray

RECENT = 50
"""The most recent items of a history that a reason may name: what the model reads, or about that."""


class Nearness:
    """The embeddings of a catalogue's items.

    Args:
        vectors: [num_items, dim]; not divided by their lengths here: they may be a map of a file, which all processes
            share.
    """

    def __init__(self, vectors: Rows) -> None:
        self.vectors = vectors

    def directions_of(self, items: IntArray) -> npt.NDArray[np.float32]:
        """float32 [C, D]: the embeddings of items, of length 1; zeros stay zeros."""
        vectors = self.vectors.take(items)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        found: npt.NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return found

    def nearest(self, items: IntArray, history: IntArray, count: int) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """Of each item those of the recent `history` that its embedding is most like, best first, and the cosines.

        Returns:
            int64 and float32 [len(items), at most `count`].
        """
        recent = np.array(list(dict.fromkeys(history[-RECENT:].tolist())), dtype=np.int64)
        cosines = self.directions_of(items) @ self.directions_of(recent).T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        return recent[order], np.take_along_axis(cosines, order, axis=1)
