"""Several sources and one ranker behind the call of a single recommender. Knows no HTTP and no schedule of a fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ArtifactError
from recsys.generator.constraints import Constraints
from recsys.generator.recommendations import Recommendations
from recsys.retrieval.features import PRIOR
from recsys.retrieval.pool import Pool
from recsys.retrieval.ranker import ConditionalLogit
from recsys.retrieval.sources import FloatArray

_BATCH = 256


class FusedRecommender:
    """Ranked items of several sources together; scores are calibrated log-probabilities.

    A history of which no source but the prior knows anything gets the prior's list with the prior's scores: the ranker
    has not seen such cases.

    Args:
        pool: the sources.
        ranker: fitted over the same.
    """

    def __init__(self, pool: Pool, ranker: ConditionalLogit) -> None:
        if ranker.names != pool.names:
            raise ArtifactError(
                f"fusion: the ranker was fitted on {', '.join(ranker.names)}, the sources give "
                f"{', '.join(pool.names)}; fit it again"
            )
        self.pool = pool
        self.ranker = ranker

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        constraints: Constraints | None = None,
        batch_size: int = _BATCH,
        sessions: Sequence[str] | None = None,
    ) -> Recommendations:
        """The `k` best items for each history; all permitted ones when k exceeds their number.

        Args:
            histories: B histories of item indices, oldest first; may be empty.
            k: length of each list.
            constraints: restrictions of the B requests.
            batch_size: histories at a time; changes memory, not results.
            sessions: a key for each history, under which sources may keep what they have read of it.

        Raises:
            ValueError: k below 1, or caps, which hold in the generator's own lists only.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        constraints = constraints if constraints is not None else Constraints()
        if constraints.caps:
            raise ValueError("caps do not hold over several sources; ask the generator, or ask without them")
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for begin in range(0, len(histories), batch_size):
            rows = np.arange(begin, min(begin + batch_size, len(histories)))
            keys = None if sessions is None else sessions[begin : begin + batch_size]
            items[rows], scores[rows] = self._rank(histories.select(rows), k, constraints.select(rows), keys)
        return Recommendations(items=items, scores=scores)

    def _rank(
        self, histories: Sequences, k: int, constraints: Constraints, sessions: Sequence[str] | None
    ) -> tuple[IntArray, FloatArray]:
        proposals = self.pool.propose(histories, k, constraints, sessions)
        candidates = self.pool.candidates(proposals)
        owners = candidates.owners
        scores = self.ranker.log_probabilities(candidates).astype(np.float32)
        prior = proposals[PRIOR]
        unknown = ~np.any([(p.items >= 0).any(axis=1) for name, p in proposals.items() if name != PRIOR], axis=0)
        priors = prior.scores(candidates.items[None, :])[0]
        scores = np.where(unknown[owners], priors, scores)
        order = np.lexsort((candidates.items, -scores, owners))
        place = np.arange(len(order)) - candidates.offsets[owners]
        kept = place < k
        items = np.full((len(histories), k), -1, dtype=np.int64)
        best = np.full((len(histories), k), -np.inf, dtype=np.float32)
        items[owners[kept], place[kept]] = candidates.items[order[kept]]
        best[owners[kept], place[kept]] = scores[order[kept]]
        return items, best
