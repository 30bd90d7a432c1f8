"""One source of candidates behind the call of a recommender: what answers when there is no time for a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray, Sequences
from recsys.generator.constraints import Constraints
from recsys.generator.diversity import walk_in_order
from recsys.generator.lists import shortages
from recsys.generator.recommendations import Recommendations
from recsys.retrieval.sources import FloatArray, Source

_GROWTH = 4


class SourceRecommender:
    """A source's own order, with its own scores, which are comparable within a list alone.

    Args:
        source: proposes.
        num_items: size of the catalogue.
    """

    def __init__(self, source: Source, num_items: int) -> None:
        self._source = source
        self._num_items = num_items

    def with_items(self, vectors: Rows) -> SourceRecommender:
        """The same over more items, see `Source.with_items`."""
        return SourceRecommender(self._source.with_items(vectors), len(vectors))

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        constraints: Constraints | None = None,
        sessions: Sequence[str | None] | None = None,
    ) -> Recommendations:
        """The source's `k` best items of each history; shorter lists where it knows of no more.

        Under caps a list is the walk over the source's order that skips items of full groups, however far it leads.

        Args:
            histories: B histories of item indices, oldest first; may be empty.
            k: length of each list.
            constraints: restrictions of the B requests.
            sessions: a key for each history, for sources that keep what they have read.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        constraints = constraints if constraints is not None else Constraints()
        caps, held = constraints.caps, replace(constraints, caps=())
        depth = min(k, self._num_items)
        while True:
            proposal = self._source.propose(histories, depth, held, sessions)
            found = proposal.items
            taken = walk_in_order(found, caps, k)
            has_more = (taken.sum(axis=1) < k) & (found >= 0).all(axis=1)
            if depth == self._num_items or not has_more.any():
                break
            depth = min(_GROWTH * depth, self._num_items)
        items, scores = _listed(found, taken, proposal.scores(found), k)
        short = shortages(torch.from_numpy(items), constraints, self._num_items)
        return Recommendations(items=items, scores=scores, short=short)


def _listed(found: IntArray, taken: np.ndarray, scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """int64 and float32 [B, k]: what was `taken`, in its order."""
    order = np.argsort(~taken, axis=1, kind="stable")[:, :k]
    exists = np.take_along_axis(taken, order, axis=1)
    items = np.full((len(found), k), -1, dtype=np.int64)
    best = np.full((len(found), k), -np.inf, dtype=np.float32)
    width = order.shape[1]
    items[:, :width] = np.where(exists, np.take_along_axis(found, order, axis=1), -1)
    best[:, :width] = np.where(exists, np.take_along_axis(scores, order, axis=1), -np.inf)
    return items, best
