"""Re-orders a list of candidates: boosts, diversity. Knows no model, no catalogue and no HTTP.

All of it acts on the candidates that a source gave, a list that is longer than the one that is shown: an item that is
not among them cannot rise into it. Rules that must reach every item (filters, caps, what was seen) are the search's.

Diversity is maximal marginal relevance (Carbonell and Goldstein, "The use of MMR, diversity-based reranking for
reordering documents and producing summaries", 1998): the next item is the one with the largest
`(1 - d) * relevance - d * likeness`, where relevance is the score on a scale from 0 (worst candidate) to 1 (best) and
likeness that to the most alike of the items before it, 0 .. 1. At 0 the order stays, at 1 only the first item counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrangement:
    """What is done to the candidates of one request."""

    boosts: Sequence[tuple[npt.NDArray[np.bool_], float]] = ()
    """bool [num_items], which items, with what is added to their scores."""
    diversity: float = 0.0


def arrange(
    items: IntArray,
    scores: FloatArray,
    arrangement: Arrangement,
    directions: Callable[[IntArray], FloatArray],
) -> tuple[IntArray, FloatArray]:
    """The candidates in the order of the list, with their boosted scores.

    Args:
        items: int64 [C], best first.
        scores: float32 [C].
        arrangement: what to do.
        directions: of items, int64 [C] to float32 [C, D]: unit vectors, whose inner products say how much alike they
            are.
    """
    if arrangement.boosts:
        offsets = sum(weight * chosen[items] for chosen, weight in arrangement.boosts)
        scores = (scores + offsets).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        items, scores = items[order], scores[order]
    if arrangement.diversity:
        order = diverse_order(scores, directions(items), arrangement.diversity)
        items, scores = items[order], scores[order]
    return items, scores


def diverse_order(scores: FloatArray, directions: FloatArray, diversity: float) -> IntArray:
    """int64 [C]: the candidates by maximal marginal relevance, see the module.

    Args:
        scores: float32 [C]; of equal ones the earlier is the better.
        directions: float32 [C, D], unit vectors.
        diversity: 0 .. 1.
    """
    spread = np.ptp(scores) if len(scores) else 0.0
    relevance = (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores), dtype=np.float32)
    likeness = (1 + directions @ directions.T) / 2
    nearest = np.zeros(len(scores), dtype=np.float32)
    left = np.ones(len(scores), dtype=bool)
    order = []
    for place in range(len(scores)):
        worth = (1 - diversity) * relevance - diversity * nearest if place else relevance
        item = int(np.argmax(np.where(left, worth, -np.inf)))
        order.append(item)
        left[item] = False
        nearest = np.maximum(nearest, likeness[item])
    return np.array(order, dtype=np.int64)
