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
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.baselines import SkipGram
from recsys.generator.constraints import Constraints
from recsys.generator.recommendations import Recommender
from recsys.retrieval.index import ItemIndex, denied_pairs
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
        fitted: int64 [M], ascending: the catalogue's items that the tower knows.
        num_items: size of the catalogue.
        index: over the tower's vectors of them.
    """

    def __init__(self, tower: Reader, fitted: IntArray, num_items: int, index: ItemIndex) -> None:
        self._tower = tower
        self._places = _Places(fitted, num_items)
        self.index = index

    def with_items(self, vectors: Rows) -> TowerSource:
        """See `Source`: content is known of every item; a fitted tower knows the items that it knew."""
        if not isinstance(self._tower, ContentTower):
            return TowerSource(self._tower, self._places.fitted, len(vectors), self.index)
        tower = self._tower.with_items(vectors.further)
        return TowerSource(tower, np.arange(len(vectors)), len(vectors), self.index.with_rows(tower.further_vectors))

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`; a history without an item that the tower knows, or with a zero vector, gets no items."""
        queries = self._tower.encode(histories.renumber(self._places.index))
        items = np.full((len(histories), n), -1, dtype=np.int64)
        rows = np.flatnonzero(queries.any(axis=1))
        if len(rows):
            within = self._places.constraints(constraints.select(rows), len(rows))
            items[rows] = self._places.names[self.index.search(queries[rows], n, within).items]
        return _Projected(items, queries, self.index.rows, self._places.index)


class _Projected:
    def __init__(self, items: IntArray, queries: FloatArray, vectors: Rows, index: IntArray) -> None:
        self.items = items
        self._queries = queries
        self._vectors = vectors
        self._index = index

    def scores(self, items: IntArray) -> FloatArray:
        scores = np.full(items.shape, -np.inf, dtype=np.float32)
        places = np.where(items >= 0, self._index[items], -1)
        # Row by row: all vectors of a batch at once would be B * C * D numbers.
        for row in np.flatnonzero(self._queries.any(axis=1)):
            known = places[row] >= 0
            scores[row, known] = self._vectors.take(places[row, known]) @ self._queries[row]
        return scores


class CounterSource:
    """Evidence of the skip-gram counter: items that followed those of the history, and no others.

    Args:
        counter: fitted on the items of `fitted`.
        fitted: int64 [M], ascending.
        num_items: size of the catalogue.
    """

    def __init__(self, counter: SkipGram, fitted: IntArray, num_items: int) -> None:
        self._counter = counter
        self._places = _Places(fitted, num_items)

    def with_items(self, vectors: Rows) -> Source:
        """See `Source`: no new item has followed any."""
        return CounterSource(self._counter, self._places.fitted, len(vectors))

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`."""
        evidence = self._counter.evidence(histories.renumber(self._places.index)).tocoo()
        return _Evidence(
            evidence.row.astype(np.int64),
            self._places.names[evidence.col],
            evidence.data,
            shape=(len(histories), len(self._places.index)),
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
        allow = constraints.allow_rows(self._num_items, batch, torch.device("cpu"))
        if allow is not None:
            permitted &= allow.numpy()[rows, items]
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
        self._counts = counts
        self._total = float(counts.sum() + len(counts))
        # Equal counts go by the item's index.
        self._order = np.argsort(-counts, kind="stable")

    def with_items(self, vectors: Rows) -> Source:
        """See `Source`: new items have no interactions."""
        count = len(self._counts)
        twin = copy.copy(self)
        twin._counts = np.pad(self._counts, (0, len(vectors) - count))
        twin._total = self._total + len(vectors) - count
        twin._order = np.concatenate([self._order, np.arange(count, len(vectors))])
        return twin

    def propose(
        self, histories: Sequences, n: int, constraints: Constraints, sessions: Sequence[str | None] | None = None
    ) -> Proposal:
        """See `Source`."""
        batch, num_items = len(histories), len(self._order)
        allow = constraints.allow_rows(num_items, batch, torch.device("cpu"))
        deny = constraints.deny_rows(batch)
        most_denied = max(map(len, deny), default=0) if deny is not None else 0
        # Without a bitmap, the first n that are not denied lie within these.
        order = self._order if allow is not None else self._order[: n + most_denied]
        permitted = np.ones((batch, len(order)), dtype=bool) if allow is None else allow.numpy()[:, order]
        if deny is not None:
            pairs = order + num_items * np.arange(batch)[:, None]
            permitted = permitted & ~np.isin(pairs, denied_pairs(deny, num_items))
        rows, columns = np.nonzero(permitted)
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        items = np.full((batch, n), -1, dtype=np.int64)
        items[rows[place < n], place[place < n]] = order[columns[place < n]]
        return _Prior(items, self._counts, self._total)


class _Prior:
    def __init__(self, items: IntArray, counts: IntArray, total: float) -> None:
        self.items = items
        self._counts = counts
        self._total = total

    def scores(self, items: IntArray) -> FloatArray:
        shares = (self._counts[items] + 1.0) / self._total
        return np.where(items >= 0, np.log(shares).astype(np.float32), np.float32(-np.inf))


class _Places:
    """A source's own numbering of the items that it was fitted on."""

    def __init__(self, fitted: IntArray, num_items: int) -> None:
        self.index = np.full(num_items, -1, dtype=np.int64)
        self.index[fitted] = np.arange(len(fitted))
        self.fitted = fitted
        # The last entry maps "no item" to itself.
        self.names = np.append(fitted, -1)
        self._all = len(fitted) == num_items

    def constraints(self, constraints: Constraints, batch_size: int) -> Constraints:
        """The same restrictions in the source's numbers."""
        if self._all:
            return constraints
        allow = constraints.allow
        if allow is not None:
            constraints.allow_rows(len(self.index), batch_size, torch.device("cpu"))
            allow = allow[..., self.names[:-1]]
        deny = constraints.deny_rows(batch_size)
        if deny is not None:
            deny = [places[places >= 0] for places in (self.index[items] for items in deny)]
        return Constraints(allow=allow, deny=deny)


def _look_up(pairs: IntArray, values: FloatArray, asked: IntArray, exists: BoolArray) -> FloatArray:
    """float32, like `asked`: the value of each pair (a number); -inf where there is none or `exists` is false."""
    if len(pairs) == 0:
        return np.full(asked.shape, -np.inf, dtype=np.float32)
    order = np.argsort(pairs)
    ordered = pairs[order]
    at = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
    return np.where((ordered[at] == asked) & exists, values[order][at], np.float32(-np.inf)).astype(np.float32)
