"""A Faiss index over item vectors, with each request's constraints. Knows no users, no models and no fusion.

What the index returns is filtered and ordered here. A row that it leaves short, or whose last place may be tied with an
item that it left out, is answered by brute force over the permitted items: a flat index is exact whatever the filter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray
from recsys.errors import DataError
from recsys.generator.constraints import Constraints
from recsys.ranks import ALONE, Ranks
from recsys.retrieval.gpu import LONGEST_LIST, copy_to_gpus, search_graph
from recsys.retrieval.shards import (
    BREADTH,
    REFINED,
    FloatArray,
    IndexBuild,
    IndexKind,
    are_finite,
    check_shards,
    choose_num_shards,
    is_saved,
    joined,
    load_shards,
    make_shards,
    save_shards,
)

BoolArray = npt.NDArray[np.bool_]

_FLAT_UP_TO = 50_000
_HNSW_UP_TO = 5_000_000
_SELECTIVE = 0.1
"""Below this permitted share a filter is worked off before the search: the survivors are few, and exact is cheap."""
_REFINED_FLOATS = 2**22
"""Components of vectors that are compared again at a time, about."""
_PRODUCT_FROM = 8
"""Queries from which one matrix product is faster than Faiss, which reads all vectors anew for each of them."""
_PRODUCT_SCORES = 2**24
"""Scores that one matrix product makes at a time, at most."""


def choose_kind(num_items: int) -> IndexKind:
    """`flat` (exact) up to 50,000 items, `hnsw` up to 5 million, `ivf_rabitq` (compressed) above."""
    if num_items <= _FLAT_UP_TO:
        return "flat"
    return "hnsw" if num_items <= _HNSW_UP_TO else "ivf_rabitq"


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """Items found for B queries, best first; equal scores in the order of their indices."""

    items: IntArray
    """int64 [B, n]: item indices; -1 where there are no more."""
    scores: FloatArray
    """float32 [B, n]: inner products; -inf beside -1."""


class ItemIndex:
    """Maximum inner product over the rows of `vectors`.

    `hnsw` is a graph (arXiv 1603.09320), and so is `cagra` (arXiv 2308.15136), which a Faiss with cuVS builds and
    searches on a GPU; where there is none it is loaded, and searched on the CPU. The others compare codes of the
    vectors in the nearest cells and rank the best of them by the vectors themselves: `ivf_pq` 4-bit codes of parts
    (arXiv 1702.08734, section 4) beside a copy of the vectors, `ivf_rabitq` one bit for each component (arXiv
    2405.12497) and no copy: at ten million items of 64 dimensions it adds a tenth to the vectors, which may be the map
    of a file and are read piece by piece. Its cells and codes are those of vectors of one length, whatever the lengths
    of the given ones.

    What is built is divided into shards, each over consecutive rows and a file of its own. Cells and codes are fitted
    once for all of them, so that `ivf_rabitq` finds the same whatever their number; of graphs each shard has its own.

    Args:
        vectors: float32 [N, D], finite, N at least 1.
        kind: how it searches; chosen by N when None.
        num_shards: chosen by kind and N when None.
        shards: what `save` wrote, read again; built when None.

    Raises:
        DataError: no vectors, one that is not finite, or fewer than the shards need.
        ConfigError: the kind cannot be built here.
    """

    def __init__(
        self,
        vectors: FloatArray,
        kind: IndexKind | None = None,
        *,
        num_shards: int | None = None,
        shards: Sequence[Any] | None = None,
    ) -> None:
        _check_finite(vectors)
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self.rows = Rows.of(self.vectors)
        """Of all items, those too that `with_rows` has added."""
        self.kind: IndexKind = choose_kind(len(vectors)) if kind is None else kind
        if shards is None:
            number = choose_num_shards(self.kind, len(vectors)) if num_shards is None else num_shards
            shards = make_shards(self.vectors, self.kind, number)
        self._shards = shards
        self._built = joined(shards, self.kind)
        self._on_gpu = copy_to_gpus(shards, self.kind)

    def search(self, queries: FloatArray, n: int, constraints: Constraints | None = None) -> Hits:
        """The `n` items with the largest inner product for each query; all permitted ones when there are fewer.

        Args:
            queries: float32 [B, D].
            n: length of the lists, at least 1.
            constraints: restrictions of the B requests.
        """
        num_items, dim = len(self.rows), self.vectors.shape[1]
        if n < 1 or queries.ndim != 2 or queries.shape[1] != dim:
            raise ValueError(f"n must be at least 1 and queries [B, {dim}], got n={n} and {list(queries.shape)}")
        batch = len(queries)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        constraints = constraints if constraints is not None else Constraints()
        allow = constraints.allow_rows(num_items, batch)
        deny = constraints.deny_rows(batch)
        count = len(self.vectors)
        within = allow if allow is None else allow[:, :count]
        without = deny if deny is None or count == num_items else [items[items < count] for items in deny]
        share = 1.0 if within is None else float(within.mean(axis=1).min(initial=1.0))
        if share < _SELECTIVE:
            items, scores, settled = _empty(batch, n)
        else:
            items, scores, settled = self._filtered(queries, n, within, without, share)
        for row in np.flatnonzero(~settled):
            permitted = np.ones(count, dtype=bool) if within is None else within[row].copy()
            if without is not None:
                permitted[without[int(row)]] = False
            items[row], scores[row] = self._exact(queries[row], n, permitted)
        if count == num_items:
            return Hits(items=items, scores=scores)
        return _merged(items, scores, count, self._further_scores(queries, allow, deny))

    def with_rows(self, further: FloatArray) -> ItemIndex:
        """This index with other items behind those that it was built over; it stays as it is itself.

        They are compared one by one, 2 ms a query for 10,000 of 384 dimensions, and nothing that was built is copied.

        Args:
            further: float32 [K, D].
        """
        twin = copy.copy(self)
        twin.rows = Rows(self.vectors, further)
        return twin

    def save(self, directory: Path) -> None:
        """Write into an existing directory; the vectors are their owner's to keep, and a flat index is nothing else."""
        save_shards(() if self.kind == "flat" else self._shards, self.kind, self.vectors, directory)

    @classmethod
    def load(cls, directory: Path, vectors: FloatArray) -> ItemIndex:
        """Read what `save` or `build` wrote, over the same vectors. The index stays a map of its files, one in memory
        for all processes that load it: replace the files, do not write into them.

        Raises:
            ArtifactError: a file is missing or was changed, or the vectors are others.
        """
        kind, shards = load_shards(directory, vectors)
        return cls(vectors, kind, shards=shards or None)

    @classmethod
    def build(
        cls,
        directory: Path,
        vectors: FloatArray,
        kind: IndexKind | None = None,
        *,
        num_shards: int | None = None,
        ranks: Ranks = ALONE,
    ) -> ItemIndex:
        """Build straight into an existing directory, with no more than one shard in memory, and load it.

        What was there of the same vectors and settings is kept: a build that was killed goes on with the shards that
        lack, and a finished one is only loaded.

        Args:
            directory: that all `ranks` see.
            vectors: as of the index.
            kind: as of the index.
            num_shards: as of the index.
            ranks: the processes that build it together; each makes its part of the shards.

        Raises:
            DataError, ConfigError: as the index.
        """
        _check_finite(vectors)
        kind = choose_kind(len(vectors)) if kind is None else kind
        num_shards = choose_num_shards(kind, len(vectors)) if num_shards is None else num_shards
        check_shards(kind, len(vectors), num_shards)
        if kind == "flat":
            index = cls(vectors, kind)
            if ranks.leads:
                index.save(directory)
            ranks.wait()
            return index
        if not ranks.told(is_saved(directory, kind, vectors, num_shards) if ranks.leads else False):
            if ranks.leads:
                IndexBuild.begin(directory, vectors, kind, num_shards)
            ranks.wait()
            build = IndexBuild.join(directory, vectors)
            for number in range(num_shards)[ranks.part(num_shards)]:
                build.make(number)
            ranks.wait()
            if ranks.leads:
                build.finish()
            ranks.wait()
        return cls.load(directory, vectors)

    def _further_scores(
        self, queries: FloatArray, allow: BoolArray | None, deny: Sequence[IntArray] | None
    ) -> FloatArray:
        """float32 [B, K]: of what `with_rows` has added; -inf where it is not permitted."""
        count = len(self.vectors)
        scores = queries @ self.rows.further.T
        if allow is not None:
            scores[~allow[:, count:]] = -np.inf
        for row, items in enumerate(deny or ()):
            scores[row, items[items >= count] - count] = -np.inf
        return scores

    def _filtered(
        self, queries: FloatArray, n: int, allow: BoolArray | None, deny: Sequence[IntArray] | None, share: float
    ) -> tuple[IntArray, FloatArray, BoolArray]:
        """Lists from what the index returns, and bool [B]: which of them nothing that it left out can change."""
        num_items = len(self.vectors)
        most_denied = max(map(len, deny), default=0) if deny is not None else 0
        # One more than the list shows whether its end is tied; permitted items may be rare near a query, hence twice.
        depth = min(num_items, math.ceil((n + 1) * (1 if allow is None else 2) / share) + most_denied)
        found_scores, found = self._nearest(queries, depth)
        worst = found_scores[:, -1]
        permitted = found >= 0
        if allow is not None:
            permitted &= np.take_along_axis(allow, np.maximum(found, 0), axis=1)
        if deny is not None:
            permitted &= ~np.isin(np.arange(len(found))[:, None] * num_items + found, denied_pairs(deny, num_items))
        found_scores = np.where(permitted, found_scores, -np.inf).astype(np.float32)
        order = np.lexsort((found, -found_scores), axis=1)[:, :n]
        items, scores, settled = _empty(len(queries), n)
        scores[:, : order.shape[1]] = np.take_along_axis(found_scores, order, axis=1)
        items[:, : order.shape[1]] = np.take_along_axis(found, order, axis=1)
        items[np.isneginf(scores)] = -1
        if self.kind == "flat":
            settled |= (depth == num_items) | (scores[:, -1] > worst)
        else:
            settled |= items[:, -1] >= 0
        return items, scores, settled

    def _nearest(self, queries: FloatArray, depth: int) -> tuple[FloatArray, IntArray]:
        """The best scores of each query and their items, float32 and int64 [B, depth], best first."""
        on_gpu = self._on_gpu is not None and depth <= LONGEST_LIST
        if self.kind == "flat" and not on_gpu and len(queries) >= _PRODUCT_FROM:
            vectors = torch.from_numpy(self.vectors).T
            parts = torch.split(torch.from_numpy(queries), max(1, _PRODUCT_SCORES // len(self.vectors)))
            best = [torch.topk(part @ vectors, depth) for part in parts]
            return torch.cat([top.values for top in best]).numpy(), torch.cat([top.indices for top in best]).numpy()
        # The number of threads belongs to the calling thread.
        faiss.omp_set_num_threads(torch.get_num_threads())
        if self.kind == "ivf_rabitq":
            return self._refined(queries, depth)
        if self.kind == "cagra" and on_gpu:
            return search_graph(self._on_gpu, queries, depth, breadth=BREADTH, num_vectors=len(self.vectors))
        found: tuple[FloatArray, IntArray] = (self._on_gpu if on_gpu else self._built).search(queries, depth)
        return found

    def _refined(self, queries: FloatArray, depth: int) -> tuple[FloatArray, IntArray]:
        """What `_nearest` gives, of several times as many that are near by their codes."""
        count, dim = self.vectors.shape
        breadth = min(count, REFINED * depth)
        scores = np.empty((len(queries), depth), dtype=np.float32)
        items = np.empty((len(queries), depth), dtype=np.int64)
        step = max(1, _REFINED_FLOATS // (breadth * dim))
        asked = np.pad(queries, ((0, 0), (0, self._built.d - dim)))
        for begin in range(0, len(queries), step):
            part = slice(begin, begin + step)
            _, near = self._built.search(asked[part], breadth)
            products = np.einsum("bd,bnd->bn", queries[part], self.vectors[near])
            products[near < 0] = -np.inf
            order = np.argsort(-products, axis=1)[:, :depth]
            scores[part] = np.take_along_axis(products, order, axis=1)
            items[part] = np.take_along_axis(near, order, axis=1)
        return scores, items

    def _exact(self, query: FloatArray, n: int, permitted: BoolArray) -> tuple[IntArray, FloatArray]:
        """One row by brute force."""
        candidates = np.flatnonzero(permitted)
        scores = self.vectors[candidates] @ query
        order = np.lexsort((candidates, -scores))[:n]
        missing = (0, n - len(order))
        return np.pad(candidates[order], missing, constant_values=-1), np.pad(
            scores[order], missing, constant_values=-np.inf
        )


def _merged(items: IntArray, scores: FloatArray, count: int, further: FloatArray) -> Hits:
    """Lists of n with what scores of further items, float32 [B, K] from number `count` on, have a place in them."""
    n = items.shape[1]
    both = np.concatenate([scores, further], axis=1)
    numbers = np.broadcast_to(np.arange(count, count + further.shape[1]), further.shape)
    found = np.concatenate([items, numbers], axis=1)
    order = np.lexsort((found, -both), axis=1)[:, :n]
    best = np.take_along_axis(both, order, axis=1)
    return Hits(items=np.where(np.isneginf(best), -1, np.take_along_axis(found, order, axis=1)), scores=best)


def denied_pairs(deny: Sequence[IntArray], num_items: int) -> IntArray:
    """One number for each denied (row, item) pair: `row * num_items + item`."""
    owner = np.repeat(np.arange(len(deny)), [len(items) for items in deny])
    return np.asarray(owner * num_items + np.concatenate([*deny, np.zeros(0, dtype=np.int64)]))


def _empty(batch: int, n: int) -> tuple[IntArray, FloatArray, BoolArray]:
    return (
        np.full((batch, n), -1, dtype=np.int64),
        np.full((batch, n), -np.inf, dtype=np.float32),
        np.zeros(batch, dtype=bool),
    )


def _check_finite(vectors: FloatArray) -> None:
    if vectors.ndim != 2 or 0 in vectors.shape or not are_finite(vectors):
        found = list(vectors.shape)
        raise DataError(f"an index needs finite vectors [items, dim], found {found}; check the encoder")
