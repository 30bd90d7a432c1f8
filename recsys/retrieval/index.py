"""A Faiss index over item vectors, with each request's constraints. Knows no users, no models and no fusion.

What the index returns is filtered and ordered here. A row that it leaves short, or whose last place may be tied with an
item that it left out, is answered by brute force over the permitted items: a flat index is exact whatever the filter.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt
import torch

from recsys.data.rows import Rows
from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_path, sha256_file, write_json
from recsys.generator.constraints import Constraints

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

IndexKind = Literal["flat", "hnsw", "ivf_pq", "ivf_rabitq"]

_FORMAT = 1
_FACTS, _FAISS = "index.json", "index.faiss"
_FLAT_UP_TO = 50_000
_HNSW_UP_TO = 5_000_000
_SELECTIVE = 0.1
"""Below this permitted share a filter is worked off before the search: the survivors are few, and exact is cheap."""
_HNSW_LINKS, _HNSW_BUILD_BREADTH, _HNSW_BREADTH = 32, 80, 128
_PROBES, _REFINED, _MOST_SUBSPACES, _POINTS_A_CELL = 16, 8, 64, 39
_SAMPLE_A_CELL = 64
"""Vectors that cells and codes are fitted to, for each cell: all of them would take hours at ten million items."""
_REFINED_FLOATS = 2**22
"""Components of vectors that are compared again at a time, about."""
_PIECE_ROWS = 2**16
"""Vectors that are checked, or put into an index, at a time."""
_PRODUCT_FROM = 8
"""Queries from which one matrix product is faster than Faiss, which reads all vectors anew for each of them."""
_PRODUCT_SCORES = 2**24
"""Scores that one matrix product makes at a time, at most."""
_GPU_DEPTH = 2048
"""The longest list that Faiss gives on a GPU."""


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

    `hnsw` is a graph (arXiv 1603.09320). The others compare codes of the vectors in the nearest cells and rank the best
    of them by the vectors themselves: `ivf_pq` 4-bit codes of parts (arXiv 1702.08734, section 4) beside a copy of the
    vectors, `ivf_rabitq` one bit for each component (arXiv 2405.12497) and no copy: at ten million items of 64
    dimensions it adds a tenth to the vectors, which may be the map of a file and are read piece by piece. Its
    cells and codes are those of vectors of one length (see `_of_one_length`), whatever the lengths of the given ones.

    Args:
        vectors: float32 [N, D], finite, N at least 1.
        kind: how it searches; chosen by N when None.

    Raises:
        DataError: no vectors, or one that is not finite.
    """

    def __init__(self, vectors: FloatArray, kind: IndexKind | None = None, *, built: Any = None) -> None:
        if vectors.ndim != 2 or 0 in vectors.shape or not _are_finite(vectors):
            found = list(vectors.shape)
            raise DataError(f"an index needs finite vectors [items, dim], found {found}; check the encoder")
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self.rows = Rows.of(self.vectors)
        """Of all items, those too that `with_rows` has added."""
        self.kind: IndexKind = choose_kind(len(vectors)) if kind is None else kind
        self._built = _build(self.vectors, self.kind) if built is None else built
        self._on_gpu = _copy_to_gpu(self._built, self.kind)

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
        stored = None
        if self.kind != "flat":
            with atomic_path(directory / _FAISS) as temporary:
                faiss.write_index(self._built, str(temporary))
            stored = sha256_file(directory / _FAISS)
        facts = {"format": _FORMAT, "kind": self.kind, "vectors_sha256": _digest(self.vectors), "faiss_sha256": stored}
        write_json(directory / _FACTS, facts)

    @classmethod
    def load(cls, directory: Path, vectors: FloatArray) -> ItemIndex:
        """Read what `save` wrote, over the same vectors. The index stays a map of its file, one in memory for all
        processes that load it: replace the file, do not write into it.

        Raises:
            ArtifactError: a file is missing or was changed, or the vectors are others.
        """
        try:
            facts = json.loads((directory / _FACTS).read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(f"index: {directory} has format {facts['format']}, this version reads {_FORMAT}")
            kind, vectors_sha256, faiss_sha256 = (facts[key] for key in ("kind", "vectors_sha256", "faiss_sha256"))
            # Before Faiss reads it: a crafted file must not reach its parser.
            whole = faiss_sha256 is None or sha256_file(directory / _FAISS) == faiss_sha256
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"index: cannot read {directory}: {error}; build it again") from error
        if not whole:
            raise ArtifactError(f"index: {directory / _FAISS} was changed; build it again")
        if vectors_sha256 != _digest(vectors):
            raise ArtifactError(f"index: {directory} was built over other vectors; load it with those of the same run")
        stored = faiss.read_index(str(directory / _FAISS), faiss.IO_FLAG_MMAP_IFC) if faiss_sha256 else None
        return cls(vectors, kind, built=stored)

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
        on_gpu = self._on_gpu is not None and depth <= _GPU_DEPTH
        if self.kind == "flat" and not on_gpu and len(queries) >= _PRODUCT_FROM:
            vectors = torch.from_numpy(self.vectors).T
            parts = torch.split(torch.from_numpy(queries), max(1, _PRODUCT_SCORES // len(self.vectors)))
            best = [torch.topk(part @ vectors, depth) for part in parts]
            return torch.cat([top.values for top in best]).numpy(), torch.cat([top.indices for top in best]).numpy()
        # The number of threads belongs to the calling thread.
        faiss.omp_set_num_threads(torch.get_num_threads())
        if self.kind == "ivf_rabitq":
            return self._refined(queries, depth)
        found: tuple[FloatArray, IntArray] = (self._on_gpu if on_gpu else self._built).search(queries, depth)
        return found

    def _refined(self, queries: FloatArray, depth: int) -> tuple[FloatArray, IntArray]:
        """What `_nearest` gives, of several times as many that are near by their codes."""
        count, dim = self.vectors.shape
        breadth = min(count, _REFINED * depth)
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


def _build(vectors: FloatArray, kind: IndexKind) -> Any:
    num_items, dim = vectors.shape
    index: Any
    faiss.omp_set_num_threads(torch.get_num_threads())
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_BUILD_BREADTH
        index.hnsw.efSearch = _HNSW_BREADTH
    elif kind == "ivf_pq":
        subspaces = max(size for size in range(1, min(dim, _MOST_SUBSPACES) + 1) if dim % size == 0)
        index = _with_cells(_sample(vectors), num_items, f"PQ{subspaces}x4fs,RFlat", f",k_factor_rf={_REFINED}")
    else:
        longest = max(float(np.linalg.norm(part, axis=1).max()) for part in _pieces(vectors)) or 1.0
        index = _with_cells(_of_one_length(_sample(vectors), longest), num_items, "RaBitQ")
        for part in _pieces(vectors):
            index.add(_of_one_length(part, longest))
        return index
    index.add(vectors)
    return index


def _with_cells(sample: FloatArray, num_items: int, codes: str, further: str = "") -> Any:
    """An empty index whose cells and codes are fitted to vectors of a catalogue."""
    cells = _num_cells(num_items)
    index = faiss.index_factory(sample.shape[1], f"IVF{cells},{codes}", faiss.METRIC_INNER_PRODUCT)
    parameters: Any = faiss.ParameterSpace()
    parameters.set_index_parameters(index, f"nprobe={min(_PROBES, cells)}{further}")
    index.train(sample)
    return index


def _num_cells(num_items: int) -> int:
    return max(1, min(int(2 ** round(math.log2(4 * math.sqrt(num_items)))), num_items // _POINTS_A_CELL))


def _sample(vectors: FloatArray) -> FloatArray:
    return vectors[:: max(1, len(vectors) // (_SAMPLE_A_CELL * _num_cells(len(vectors))))]


def _pieces(vectors: FloatArray) -> Iterator[FloatArray]:
    return (vectors[begin : begin + _PIECE_ROWS] for begin in range(0, len(vectors), _PIECE_ROWS))


def _of_one_length(vectors: FloatArray, longest: float) -> FloatArray:
    """float32 [N, D + 1] of length 1, whose inner products with a query and a zero are those of `vectors` in the same
    order: what is near is then what has a large product, as cells and codes take it to be (Bachrach et al., RecSys
    2014, section 3)."""
    scaled = vectors / np.float32(longest)
    rest = np.sqrt(np.maximum(0, 1 - np.einsum("nd,nd->n", scaled, scaled)))
    return np.concatenate([scaled, rest[:, None]], axis=1)


def _are_finite(vectors: FloatArray) -> bool:
    """Without a table of booleans as long as the vectors."""
    return all(np.isfinite(part).all() for part in _pieces(vectors))


def _copy_to_gpu(built: Any, kind: IndexKind) -> Any:
    """The index on the GPU, or divided over all of them; None where Faiss has none, or no GPU version of the kind: only
    flat has one."""
    if faiss.get_num_gpus() == 0 or kind != "flat":
        return None
    if faiss.get_num_gpus() > 1:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        return faiss.index_cpu_to_all_gpus(built, co=options)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, built)


def _digest(vectors: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors, dtype=np.float32).data).hexdigest()
