"""Where an index searches: on a GPU it must find what it finds on the CPU, and only kinds that Faiss has there go."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from test_index import equals_brute_force, whole_numbers

from recsys.generator import Constraints
from recsys.retrieval.index import ItemIndex


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="this Faiss knows no GPU")
def test_a_gpu_finds_what_brute_force_finds() -> None:
    vectors, queries = whole_numbers((5000, 16), 0), whole_numbers((20, 16), 1)
    index = ItemIndex(vectors, "flat")
    assert index._on_gpu is not None
    allow = np.random.default_rng(2).random((20, 5000)) < 0.5
    for held in (Constraints(), Constraints(allow=allow), Constraints(deny=[np.arange(50)] * 20)):
        equals_brute_force(index.search(queries, 10, held), vectors, queries, 10, held)


def test_vectors_are_divided_over_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Options:
        shard = False

    def in_two(built: faiss.IndexFlatIP, co: Options) -> faiss.IndexShards:
        """What Faiss makes of two GPUs, made of two indexes on the CPU."""
        assert co.shard
        halves = np.array_split(built.reconstruct_n(0, built.ntotal), 2)
        shards = faiss.IndexShards(built.d, False, True)
        for half in halves:
            part = faiss.IndexFlatIP(built.d)
            part.add(half)
            kept.append(part)
            shards.add_shard(part)
        return shards

    kept: list[faiss.IndexFlatIP] = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", Options, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", in_two, raising=False)
    vectors, queries = whole_numbers((401, 16), 0), whole_numbers((20, 16), 1)
    index = ItemIndex(vectors, "flat")
    allow = np.random.default_rng(2).random((20, 401)) < 0.5
    for held in (Constraints(), Constraints(allow=allow), Constraints(deny=[np.arange(50)] * 20)):
        equals_brute_force(index.search(queries, 10, held), vectors, queries, 10, held)
    assert [part.ntotal for part in kept] == [201, 200]


def test_only_flat_indexes_are_copied_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda resources, device, built: copied.append(built) or built, raising=False
    )
    vectors = whole_numbers((400, 8), 0)
    for kind in ("flat", "hnsw", "ivf_pq", "ivf_rabitq"):
        index = ItemIndex(vectors, kind)
        assert index.search(vectors[:2], 5).items.shape == (2, 5)
        assert (index._on_gpu is not None) == (kind == "flat")
    assert [type(built) for built in copied] == [faiss.IndexFlatIP]
