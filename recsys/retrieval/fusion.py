"""Several sources and one ranker behind the call of a single recommender. Knows no HTTP and no schedule of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ArtifactError, ConfigError
from recsys.generator.constraints import Constraints
from recsys.generator.diversity import items_of_full_groups, walk_in_order
from recsys.generator.lists import shortages
from recsys.generator.recommendations import Recommendations, Recommender, SearchesBeams
from recsys.generator.recommender import GenerativeRecommender
from recsys.retrieval.features import PRIOR
from recsys.retrieval.pool import Pool
from recsys.retrieval.ranker import ConditionalLogit
from recsys.retrieval.sources import GENERATOR, BoolArray, FloatArray, GeneratorSource

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

    def with_generator(self, generator: Recommender) -> FusedRecommender:
        """The same fusion over another form of its generator, for example an exported one; this one stays as it is."""
        return self._with_generator(generator)

    @property
    def beams(self) -> int:
        """Width of the generator's search, which is no less than the candidates that it gives."""
        searcher = self._searcher
        return 1 if searcher is None else max(searcher.beams, self.pool.depth)

    def with_beams(self, beams: int) -> FusedRecommender:
        """The same fusion with so many candidates of the generator, and a search as narrow; needs `beams` above 1."""
        searcher = self._searcher
        assert searcher is not None
        return self._with_generator(searcher.with_beams(beams), most=beams)

    def weighted(self, weights: Mapping[str, float]) -> FusedRecommender:
        """The same fusion whose generator counts its objectives so, see `GenerativeRecommender.weighted`.

        Raises:
            ConfigError: the generator has no such objectives.
        """
        source = self.pool.sources[GENERATOR]
        if not isinstance(source, GeneratorSource) or not isinstance(source.generator, GenerativeRecommender):
            raise ConfigError("weights: the fusion's generator has no objectives")
        return self._with_generator(source.generator.weighted(weights), source.most)

    @property
    def _searcher(self) -> SearchesBeams | None:
        source = self.pool.sources[GENERATOR]
        generator = source.generator if isinstance(source, GeneratorSource) else None
        return generator if isinstance(generator, SearchesBeams) else None

    def _with_generator(self, generator: Recommender, most: int | None = None) -> FusedRecommender:
        source = self.pool.sources[GENERATOR]
        generatable = source.generatable if isinstance(source, GeneratorSource) else None
        sources = {**self.pool.sources, GENERATOR: GeneratorSource(generator, most, generatable)}
        return FusedRecommender(Pool(sources, self.pool.is_new, self.pool.depth), self.ranker)

    def with_items(
        self, generator: Recommender, vectors: Rows, generatable: BoolArray | None = None
    ) -> FusedRecommender:
        """The same fusion over more items, with no fit; this one stays as it is. New items are such to the ranker.

        Args:
            generator: over the same items.
            vectors: embeddings of the N items that there were, and behind them those of the new ones: N' in all.
            generatable: bool [N'], what the generator may find; None: everything.
        """
        sources = {name: source.with_items(vectors) for name, source in self.pool.sources.items()}
        sources[GENERATOR] = GeneratorSource(generator, generatable=generatable)
        further = len(vectors) - len(self.pool.is_new)
        is_new = np.pad(self.pool.is_new, (0, further), constant_values=True)
        return FusedRecommender(Pool(sources, is_new, self.pool.depth), self.ranker)

    @property
    def nested_up_to(self) -> int:
        """Lists without caps of at most so many items are beginnings of one another: their candidates are the same."""
        return self.pool.depth

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        constraints: Constraints | None = None,
        batch_size: int = _BATCH,
        sessions: Sequence[str | None] | None = None,
    ) -> Recommendations:
        """The `k` best items for each history; all permitted ones when k exceeds their number.

        Under caps a list is the walk over the ranked candidates that skips items of full groups (`diversity`). Where it
        ends early, the sources are asked again without the items of those groups that it skipped, and all is ranked
        anew: with one cap and one group an item, a list has k items whenever k may stand in one.

        Args:
            histories: B histories of item indices, oldest first; may be empty.
            k: length of each list.
            constraints: restrictions of the B requests.
            batch_size: histories at a time; changes memory, not results.
            sessions: a key for each history, under which sources may keep what they have read of it.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        constraints = constraints if constraints is not None else Constraints()
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for begin in range(0, len(histories), batch_size):
            rows = np.arange(begin, min(begin + batch_size, len(histories)))
            keys = None if sessions is None else sessions[begin : begin + batch_size]
            rank = self._capped if constraints.caps else self._rank
            found, best = rank(histories.select(rows), k, constraints.select(rows), keys)
            items[rows], scores[rows] = found[:, :k], best[:, :k]
        short = shortages(torch.from_numpy(items), constraints, len(self.pool.is_new))
        return Recommendations(items=items, scores=scores, short=short)

    def _capped(
        self, histories: Sequences, k: int, constraints: Constraints, sessions: Sequence[str | None] | None
    ) -> tuple[IntArray, FloatArray]:
        """Lists of k, int64 and float32 [B, k], that keep the caps."""
        caps, held = constraints.caps, replace(constraints, caps=())
        items = np.full((len(histories), k), -1, dtype=np.int64)
        best = np.full((len(histories), k), -np.inf, dtype=np.float32)
        rows = np.arange(len(histories))
        while len(rows):
            keys = None if sessions is None else [sessions[int(row)] for row in rows]
            ranked, scores = self._rank(histories.select(rows), k, held, keys)
            taken = walk_in_order(ranked, caps, k)
            # The listed ones first, in their order.
            order = np.argsort(~taken, axis=1, kind="stable")[:, :k]
            exists = np.take_along_axis(taken, order, axis=1)
            items[rows] = np.where(exists, np.take_along_axis(ranked, order, axis=1), -1)
            best[rows] = np.where(exists, np.take_along_axis(scores, order, axis=1), -np.inf)
            # What was skipped is of full groups, so that a further turn has fewer items to ask for than this one.
            again = np.flatnonzero((taken.sum(axis=1) < k) & ((ranked >= 0) & ~taken).any(axis=1))
            listed = [ranked[row][taken[row]] for row in again]
            skipped = [np.setdiff1d(items_of_full_groups(row, caps), row) for row in listed]
            rows, held = rows[again], held.select(again).deny_also(skipped)
        return items, best

    def _rank(
        self, histories: Sequences, k: int, constraints: Constraints, sessions: Sequence[str | None] | None
    ) -> tuple[IntArray, FloatArray]:
        """All candidates of each history, at least k if there are, best first: int64 and float32 [B, C], C >= k."""
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
        shape = (len(histories), max(k, int(np.diff(candidates.offsets).max(initial=0))))
        items = np.full(shape, -1, dtype=np.int64)
        best = np.full(shape, -np.inf, dtype=np.float32)
        items[owners, place], best[owners, place] = candidates.items[order], scores[order]
        return items, best
