"""Where candidates come from. Each source reads a batch of histories once, lists items and scores those of others.

Constraints hold inside a source, so that a restricted list is as long as the restriction allows. Knows no ranker and
no cases. Items are numbered as in the catalogue; what a source was never fitted on it neither lists nor scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.baselines import SkipGram
from recsys.generator.constraints import Constraints
from recsys.generator.recommendations import Recommender
from recsys.retrieval.index import ItemIndex, denied_pairs
from recsys.retrieval.popularity import DEEPER, PopularityPrior
from recsys.retrieval.towers import ContentTower, Reader

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

GENERATOR = "generator"
"""Name of the source that generates."""


class Proposal(Protocol):
    """What a source says to B histories."""

    @property
    def items(self) -> IntArray:
        """int64 [B, n]: permitted items, best first; -1 where there are no more, all -1 where it knows nothing."""

    def scores(self, items: IntArray) -> FloatArray:
        """float32 [B, C]: scores of `items` (int64 [B, C], -1 = none); -inf for those that it cannot score."""


class Source(Protocol):
    """Proposes items for histories."""

    def with_items(self, vectors: Rows) -> Source:
        """The same source over more items, with no fit; it stays as it is itself.

        Args:
            vectors: embeddings of the items that it was made over, and behind them those of the others.
        """

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """The `n` best permitted items of each of B histories; all of them when they are fewer.

        `sessions` names the session of each history, for sources that keep what they have read.
        """


class GeneratorSource:
    """The generator's beams. It scores what they found; a history without items is not asked about.

    Args:
        generator: searches.
        most: candidates that it gives at most: its search is no narrower than what it is asked for. None: no limit.
        generatable: bool [num_items], what it may find; None: everything.
    """

    def __init__(self, generator: Recommender, most: int | None = None, generatable: BoolArray | None = None) -> None:
        self.generator = generator
        self.generatable = generatable
        self.most = most

    def with_items(self, vectors: Rows) -> Source:
        """The same: who has another generator makes another source."""
        return self

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`."""
        items = np.full((len(histories), n), -1, dtype=np.int64)
        scores = np.full((len(histories), n), -np.inf, dtype=np.float32)
        rows = np.flatnonzero(histories.lengths > 0)
        if len(rows):
            width = n if self.most is None else min(n, self.most)
            found = self.generator.recommend(
                histories.select(rows),
                width,
                constraints=constraints.select(rows).within(self.generatable),
                sessions=None if sessions is None else [sessions[int(row)] for row in rows],
            )
            items[rows, :width], scores[rows, :width] = found.items, found.scores
        return _Listed(items, scores)


class _Listed:
    def __init__(self, items: IntArray, scores: FloatArray) -> None:
        self.items = items
        self._scores = scores

    def scores(self, items: IntArray) -> FloatArray:
        listed = self.items >= 0
        # One number for each (row, item).
        first = (max(self.items.max(initial=0), items.max(initial=0)) + 1) * np.arange(len(items))[:, None]
        return _look_up((first + self.items)[listed], self._scores[listed], first + items, items >= 0)


class TowerSource:
    """Inner products of a tower's vectors, found by an index and exact for any item.

    Args:
        tower: over the items of `fitted`.
        fitted: int64 [M], ascending: the catalogue's items that the tower knows; or M, the first ones.
        num_items: size of the catalogue.
        index: over the tower's vectors of them.
    """

    def __init__(self, tower: Reader, fitted: IntArray | int, num_items: int, index: ItemIndex) -> None:
        self._tower = tower
        self._places = _Places(fitted, num_items)
        self.index = index

    def with_items(self, vectors: Rows) -> TowerSource:
        """See `Source`: content is known of every item; a fitted tower knows the items that it knew."""
        if not isinstance(self._tower, ContentTower):
            twin = copy.copy(self)
            twin._places = self._places.over(len(vectors))
            return twin
        tower = self._tower.with_items(vectors.further)
        return TowerSource(tower, len(vectors), len(vectors), self.index.with_rows(tower.further_vectors))

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`; a history without an item that the tower knows, or with a zero vector, gets no items."""
        queries = self._tower.encode(self._places.renumbered(histories))
        items = np.full((len(histories), n), -1, dtype=np.int64)
        rows = np.flatnonzero(queries.any(axis=1))
        if len(rows):
            within = self._places.constraints(constraints.select(rows), len(rows))
            items[rows] = self._places.items_at(self.index.search(queries[rows], n, within).items)
        return _Projected(items, queries, self.index.rows, self._places)


class _Projected:
    def __init__(self, items: IntArray, queries: FloatArray, vectors: Rows, own: _Places) -> None:
        self.items = items
        self._queries = queries
        self._vectors = vectors
        self._own = own

    def scores(self, items: IntArray) -> FloatArray:
        scores = np.full(items.shape, -np.inf, dtype=np.float32)
        places = self._own.places_of(items)
        # Row by row: all vectors of a batch at once would be B * C * D numbers.
        for row in np.flatnonzero(self._queries.any(axis=1)):
            known = places[row] >= 0
            scores[row, known] = self._vectors.take(places[row, known]) @ self._queries[row]
        return scores


class CounterSource:
    """Evidence of the skip-gram counter: items that followed those of the history, and no others.

    Args:
        counter: fitted on the items of `fitted`.
        fitted: int64 [M], ascending; or M, the first ones.
        num_items: size of the catalogue.
    """

    def __init__(self, counter: SkipGram, fitted: IntArray | int, num_items: int) -> None:
        self._counter = counter
        self._places = _Places(fitted, num_items)

    def with_items(self, vectors: Rows) -> Source:
        """See `Source`: no new item has followed any."""
        twin = copy.copy(self)
        twin._places = self._places.over(len(vectors))
        return twin

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`."""
        evidence = self._counter.evidence(self._places.renumbered(histories)).tocoo()
        return _Evidence(
            evidence.row.astype(np.int64),
            self._places.items_at(evidence.col.astype(np.int64)),
            evidence.data,
            shape=(len(histories), self._places.num_items),
            n=n,
            constraints=constraints,
        )


class _Evidence:
    """Scores of the (row, item) pairs that have one."""

    def __init__(
        self,
        rows: IntArray,
        items: IntArray,
        scores: FloatArray,
        *,
        shape: tuple[int, int],
        n: int,
        constraints: Constraints,
    ) -> None:
        batch, self._num_items = shape
        order = np.argsort(rows * self._num_items + items)
        rows, items, self._values = rows[order], items[order], scores[order]
        self._pairs = rows * self._num_items + items
        permitted = self._values > 0
        allow = constraints.allow_rows(self._num_items, batch)
        if allow is not None:
            permitted &= allow[rows, items]
        deny = constraints.deny_rows(batch)
        if deny is not None:
            permitted &= ~np.isin(self._pairs, denied_pairs(deny, self._num_items))
        rows, items, values = rows[permitted], items[permitted], self._values[permitted]
        best_first = np.lexsort((items, -values, rows))
        rows, items = rows[best_first], items[best_first]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        self.items = np.full((batch, n), -1, dtype=np.int64)
        self.items[rows[place < n], place[place < n]] = items[place < n]

    def scores(self, items: IntArray) -> FloatArray:
        asked = items + self._num_items * np.arange(len(items))[:, None]
        return _look_up(self._pairs, self._values, asked, items >= 0)


class PopularitySource:
    """The log share of an item in the training interactions, whatever the history: the prior for cold users.

    Args:
        counts: int64 [num_items], interactions in training.
    """

    def __init__(self, counts: IntArray) -> None:
        self._prior = PopularityPrior(counts)

    def with_items(self, vectors: Rows) -> Source:
        """See `Source`: new items have no interactions."""
        twin = copy.copy(self)
        twin._prior = self._prior.with_items(len(vectors) - len(self._prior.counts))
        return twin

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`."""
        batch, num_items = len(histories), len(self._prior.order)
        allow = constraints.allow_rows(num_items, batch)
        deny = constraints.deny_rows(batch)
        # Without a bitmap, the first n that are not denied lie within these.
        depth = n + (max(map(len, deny), default=0) if deny is not None else 0)
        while True:
            order = self._prior.order[:depth]
            permitted = np.ones((batch, len(order)), dtype=bool) if allow is None else allow[:, order]
            if deny is not None:
                pairs = order + num_items * np.arange(batch)[:, None]
                permitted = permitted & ~np.isin(pairs, denied_pairs(deny, num_items))
            if depth >= num_items or permitted.sum(axis=1).min(initial=n) >= n:
                break
            depth *= DEEPER
        found, columns = np.nonzero(permitted)
        place = np.arange(len(found)) - np.searchsorted(found, found)
        items = np.full((batch, n), -1, dtype=np.int64)
        items[found[place < n], place[place < n]] = order[columns[place < n]]
        return _Popular(items, self._prior)


class _Popular:
    def __init__(self, items: IntArray, prior: PopularityPrior) -> None:
        self.items = items
        self._prior = prior

    def scores(self, items: IntArray) -> FloatArray:
        return np.where(items >= 0, self._prior.scores(items), np.float32(-np.inf))


class _Places:
    """A source's own numbering of the items that it was fitted on.

    Args:
        own: int64 [M], ascending: these items; or M, the first ones, under their numbers in the catalogue.
        num_items: of the catalogue.
    """

    def __init__(self, own: IntArray | int, num_items: int) -> None:
        # Without a table where that makes no difference: there may be ten million items.
        self.own = own if isinstance(own, int) or own[-1:].tolist() != [len(own) - 1] else len(own)
        self.num_items = num_items
        if not isinstance(self.own, int):
            self._index = np.full(int(self.own.max(initial=-1)) + 1, -1, dtype=np.int64)
            self._index[self.own] = np.arange(len(self.own))
            # The last entry maps "no item" to itself.
            self._items = np.append(self.own, -1)

    def over(self, num_items: int) -> _Places:
        """The same items in a catalogue with others behind its own."""
        twin = copy.copy(self)
        twin.num_items = num_items
        return twin

    def renumbered(self, histories: Sequences) -> Sequences:
        """Histories in the source's numbers, without what it does not know."""
        if isinstance(self.own, int) and self.own == self.num_items:
            return histories
        places = self.places_of(histories.items)
        return Sequences(users=histories.users, offsets=histories.offsets, items=places).only(places >= 0)

    def places_of(self, items: IntArray) -> IntArray:
        """int64 like `items`: their numbers here; -1 for what is not known, and for -1."""
        if isinstance(self.own, int):
            return np.where(items < self.own, items, -1)
        known = (items >= 0) & (items < len(self._index))
        return np.where(known, self._index[np.where(known, items, 0)] if len(self._index) else -1, -1)

    def items_at(self, places: IntArray) -> IntArray:
        """int64 like `places`: their numbers in the catalogue; -1 for -1."""
        return places if isinstance(self.own, int) else self._items[places]

    def constraints(self, constraints: Constraints, batch_size: int) -> Constraints:
        """The same restrictions in the source's numbers."""
        if isinstance(self.own, int) and self.own == self.num_items:
            return constraints
        allow = constraints.allow
        if allow is not None:
            constraints.allow_rows(self.num_items, batch_size)
            allow = allow[..., : self.own] if isinstance(self.own, int) else allow[..., self.own]
        deny = constraints.deny_rows(batch_size)
        if deny is not None:
            deny = [places[places >= 0] for places in map(self.places_of, deny)]
        return Constraints(allow=allow, deny=deny)


def _look_up(pairs: IntArray, values: FloatArray, asked: IntArray, exists: BoolArray) -> FloatArray:
    """float32, like `asked`: the value of each pair (a number); -inf where there is none or `exists` is false."""
    if len(pairs) == 0:
        return np.full(asked.shape, -np.inf, dtype=np.float32)
    order = np.argsort(pairs)
    ordered = pairs[order]
    at = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
    return np.where((ordered[at] == asked) & exists, values[order][at], np.float32(-np.inf)).astype(np.float32)
