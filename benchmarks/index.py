"""The claim: each kind of index finds nearly what brute force finds, at a known price, with and without a filter.

    recsys bench index [--sizes 10000 100000 1000000] [--kinds flat hnsw ivf_pq ivf_rabitq] [--shards 1] [--queries 200]
                       [--add] [--json]

Vectors are synthetic, of unit length and 64 dimensions, about a hundred around each of many centres; queries are
vectors of the catalogue with noise. They come one by one, in one thread; times are CPU times, which other programs
disturb least. A filter permits the same items to every query: 5 % is so few that they are compared one by one. A kind
is left out of a size where its build may take over five minutes, judged by the size before. `--shards 1 2 4 8` builds
each kind but flat in so many shards; `--add` keeps the recorded rows that this call does not measure anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.data import IntArray
from recsys.generator.constraints import Constraints
from recsys.retrieval.index import BoolArray, ItemIndex, choose_kind
from recsys.retrieval.shards import FloatArray, choose_num_shards

_KINDS = ("flat", "hnsw", "ivf_pq", "ivf_rabitq")
"""Those that need no GPU."""
_RESULTS = Path(__file__).parent / "results" / "index.json"
_DIM, _BEST, _A_CENTRE = 64, 10, 100
_SHARES = (1.0, 0.2, 0.05)
_LONGEST_BUILD_S = 300.0
_GROWTH = 1.5
"""Power of the size that a build grows with, at most."""


def main(arguments: list[str]) -> dict[str, Any]:
    """A row for each size and kind: seconds, bytes, microseconds, recall against brute force."""
    parser = argparse.ArgumentParser(prog="recsys bench index", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="vectors, rising")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--shards", type=int, nargs="+", default=[1], help="of every kind but flat")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--add", action="store_true", help="keep recorded rows of other sizes, kinds and shards")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    built: dict[tuple[str, int], tuple[int, float]] = {}
    for size in options.sizes:
        vectors, queries = _world(size, options.queries)
        masks = [np.random.default_rng(2).random(size) < share for share in _SHARES]
        truth = [_brute_force(vectors, queries, mask) for mask in masks]
        for kind, shards in product(options.kinds, options.shards):
            if kind == "flat" and shards > 1:
                continue
            row: dict[str, Any] = {"vectors": size, "kind": kind, "shards": shards}
            row["is_chosen"] = kind == choose_kind(size) and shards == choose_num_shards(kind, size)
            rows.append(row)
            smaller, seconds = built.get((kind, shards), (size, 0.0))
            if seconds * (size / smaller) ** _GROWTH > _LONGEST_BUILD_S:
                row["left_out"] = f"its build may take over {_LONGEST_BUILD_S:.0f} s of CPU time"
                continue
            started = time.process_time()
            index = ItemIndex(vectors, kind, num_shards=shards)
            build_s = time.process_time() - started
            built[kind, shards] = (size, build_s)
            row |= {"build_s": round(build_s, 2), "bytes_a_vector": round(_file_bytes(index) / size, 1)}
            row["searches"] = [
                {"permitted": share, **_searched(index, queries, mask, expected)}
                for share, mask, expected in zip(_SHARES, masks, truth, strict=True)
            ]
            print(row, flush=True)
    return {"dim": _DIM, "queries": options.queries, "rows": _with_recorded(rows) if options.add else rows}


def _with_recorded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows and the recorded ones of other indexes, in the order that measuring all of them would give."""

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        return row["vectors"], _KINDS.index(row["kind"]), row["shards"]

    recorded = json.loads(_RESULTS.read_text())["metrics"]["rows"]
    return sorted(({place(row): row for row in [*recorded, *rows]}).values(), key=place)


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
