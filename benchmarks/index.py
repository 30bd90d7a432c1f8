"""The claim: each kind of index finds nearly what brute force finds, at a known price, with and without a filter.

    recsys bench index [--sizes 10000 100000 1000000] [--kinds flat hnsw ivf_pq ivf_rabitq] [--queries 200] [--json]

Vectors are synthetic, of unit length and 64 dimensions, about a hundred around each of many centres; queries are
vectors of the catalogue with noise. They come one by one, in one thread; times are CPU times, which other programs
disturb least. A filter permits the same items to every query: 5 % is so few that they are compared one by one. A kind
is left out of a size where its build may take over five minutes, judged by the size before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from recsys.data import IntArray
from recsys.generator.constraints import Constraints
from recsys.retrieval.index import BoolArray, FloatArray, IndexKind, ItemIndex, choose_kind

_DIM, _BEST, _A_CENTRE = 64, 10, 100
_SHARES = (1.0, 0.2, 0.05)
_LONGEST_BUILD_S = 300.0
_GROWTH = 1.5
"""Power of the size that a build grows with, at most."""


def main(arguments: list[str]) -> dict[str, Any]:
    """A row for each size and kind: seconds, bytes, microseconds, recall against brute force."""
    parser = argparse.ArgumentParser(prog="recsys bench index", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="vectors, rising")
    parser.add_argument("--kinds", nargs="+", choices=get_args(IndexKind), default=list(get_args(IndexKind)))
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    built: dict[str, tuple[int, float]] = {}
    for size in options.sizes:
        vectors, queries = _world(size, options.queries)
        masks = [np.random.default_rng(2).random(size) < share for share in _SHARES]
        truth = [_brute_force(vectors, queries, mask) for mask in masks]
        for kind in options.kinds:
            row: dict[str, Any] = {"vectors": size, "kind": kind, "is_chosen": kind == choose_kind(size)}
            rows.append(row)
            smaller, seconds = built.get(kind, (size, 0.0))
            if seconds * (size / smaller) ** _GROWTH > _LONGEST_BUILD_S:
                row["left_out"] = f"its build may take over {_LONGEST_BUILD_S:.0f} s of CPU time"
                continue
            started = time.process_time()
            index = ItemIndex(vectors, kind)
            build_s = time.process_time() - started
            built[kind] = (size, build_s)
            row |= {"build_s": round(build_s, 2), "bytes_a_vector": round(_file_bytes(index) / size, 1)}
            row["searches"] = [
                {"permitted": share, **_searched(index, queries, mask, expected)}
                for share, mask, expected in zip(_SHARES, masks, truth, strict=True)
            ]
            print(row, flush=True)
    return {"dim": _DIM, "queries": options.queries, "rows": rows}


def _world(size: int, num_queries: int) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(1, size // _A_CENTRE), _DIM), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), size)]
    vectors += 0.5 * random.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[random.integers(0, size, num_queries)]
    return vectors, queries + 0.05 * random.standard_normal(queries.shape, dtype=np.float32)


def _brute_force(vectors: FloatArray, queries: FloatArray, mask: BoolArray) -> IntArray:
    """int64 [B, 10]."""
    permitted = np.flatnonzero(mask)
    rows = torch.from_numpy(vectors[permitted]).T
    best = [torch.topk(torch.from_numpy(query) @ rows, _BEST).indices.numpy() for query in queries]
    return permitted[np.stack(best)]


def _searched(index: ItemIndex, queries: FloatArray, mask: BoolArray, expected: IntArray) -> dict[str, float]:
    constraints = None if mask.all() else Constraints(allow=mask)
    index.search(queries[:1], _BEST, constraints)
    started = time.process_time()
    found = [index.search(query[None], _BEST, constraints).items[0] for query in queries]
    seconds = time.process_time() - started
    hits = [len(np.intersect1d(row, best)) for row, best in zip(found, expected, strict=True)]
    return {"microseconds": round(1e6 * seconds / len(queries)), "recall": round(float(np.mean(hits)) / _BEST, 4)}


def _file_bytes(index: ItemIndex) -> int:
    """Beside the vectors, which are their owner's."""
    with tempfile.TemporaryDirectory() as directory:
        index.save(Path(directory))
        return sum(path.stat().st_size for path in Path(directory).glob("*.faiss"))
