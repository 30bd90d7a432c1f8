"""Graphs of cuVS: built on a GPU, stored so that any Faiss reads them, and searched on the CPU where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from test_index import brute_force, permitted_by

from recsys.errors import ConfigError, DataError
from recsys.generator import Constraints
from recsys.retrieval import gpu, shards
from recsys.retrieval.index import ItemIndex

COUNT = 4200
"""Two shards of 2,100: none may have fewer than 2,048."""


def copied(vectors: np.ndarray, number: int, index: faiss.IndexHNSWCagra) -> None:
    """What `build_cagra` leaves in `index`, with the nearest neighbours of each vector for the graph of cuVS.

    As GpuIndexCagra.copyTo does: Faiss makes the upper levels, level 0 is what it is given.
    """
    index.init_level0 = False
    index.add(vectors)
    index.init_level0 = True
    degree = index.hnsw.nb_neighbors(0)
    nearest = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :degree]
    links = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    for row, begin in enumerate(faiss.vector_to_array(index.hnsw.offsets)[:-1]):
        links[begin : begin + degree] = nearest[row]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "build_cagra", copied)


def finds_most(index: ItemIndex, vectors: np.ndarray) -> None:
    """With and without a filter, of vectors near those of the index."""
    random = np.random.default_rng(1)
    queries = vectors[random.choice(len(vectors), 40, replace=False)]
    queries = queries + 0.05 * random.normal(size=queries.shape).astype(np.float32)
    for held in (Constraints(), Constraints(allow=random.random(len(vectors)) < 0.5, deny=[np.arange(60)] * 40)):
        for n in (10, 100):
            hits, permitted = index.search(queries, n, held), permitted_by(held, (40, len(vectors)))
            assert np.take_along_axis(permitted, hits.items, axis=1).all()
            expected, _ = brute_force(vectors, queries, n, permitted)
            found = [len(np.intersect1d(*rows)) / n for rows in zip(hits.items, expected, strict=True)]
            assert np.mean(found) > 0.9
            np.testing.assert_allclose(hits.scores, np.einsum("bd,bkd->bk", queries, vectors[hits.items]), rtol=1e-3)


def directions(count: int) -> np.ndarray:
    """Unit vectors without clusters, whose nearest neighbours alone are a graph in one piece."""
    vectors = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_stored_graph_is_loaded_and_searched_on_the_cpu(num_shards: int, tmp_path: Path) -> None:
    vectors = directions(COUNT)
    index = ItemIndex(vectors, "cagra", num_shards=num_shards)
    finds_most(index, vectors)
    index.save(tmp_path)
    loaded = ItemIndex.load(tmp_path, vectors)
    assert loaded.kind == "cagra"
    assert loaded._on_gpu is None
    assert {type(shard) for shard in loaded._shards} == {faiss.IndexHNSWCagra}
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "index-00000.faiss") in maps.read_text()
    expected, hits = index.search(vectors[:30], 12), loaded.search(vectors[:30], 12)
    np.testing.assert_array_equal(hits.items, expected.items)
    np.testing.assert_array_equal(hits.scores, expected.scores)


@pytest.mark.skipif(gpu.has_cuvs(), reason="this Faiss has cuVS")
def test_where_faiss_has_no_cuvs_a_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    for make in (
        lambda: ItemIndex(directions(COUNT), "cagra"),
        lambda: ItemIndex.build(tmp_path, directions(COUNT), "cagra"),
    ):
        with pytest.raises(ConfigError, match=r"^an index of kind cagra: needs the extra 'cuvs' .*make install-cuvs"):
            make()


def test_without_a_gpu_a_graph_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_compile_options", lambda: "GPU NVIDIA_CUVS")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=r"^an index of kind cagra: is built on a GPU, and Faiss finds none here"):
        ItemIndex(directions(COUNT), "cagra")


def test_too_few_vectors_for_a_graph_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2048 vectors, got 2000 for 1; choose fewer shards, or the kind flat"):
        ItemIndex(directions(2000), "cagra")


@pytest.mark.usefixtures("graphs")
def test_shards_are_laid_on_gpus_in_turn_and_asked_for_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where a copy to a GPU is the shard itself."""
    devices: list[int] = []
    asked: list[int] = []

    def on_gpu(resources: object, device: int, shard: Any) -> Any:
        devices.append(device)
        return shard

    def parameters(itopk_size: int) -> faiss.SearchParametersHNSW:
        asked.append(itopk_size)
        return faiss.SearchParametersHNSW(efSearch=itopk_size)

    vectors = directions(3 * 2050)
    elsewhere = ItemIndex(vectors, "cagra", num_shards=3)
    monkeypatch.setattr(faiss, "get_compile_options", lambda: "GPU NVIDIA_CUVS")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", on_gpu, raising=False)
    monkeypatch.setattr(faiss, "SearchParametersCagra", parameters, raising=False)
    index = ItemIndex(vectors, "cagra", num_shards=3)
    assert devices == [0, 1, 0]
    for n in (10, 300):
        hits, expected = index.search(vectors[:20], n), elsewhere.search(vectors[:20], n)
        np.testing.assert_array_equal(hits.items[:, :10], expected.items[:, :10])
    assert asked == [128, 301]


def test_what_cuvs_says_for_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        def search(self, queries: np.ndarray, depth: int, params: object) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((1, 3), np.float32), np.array([[4, 5, 2**32 - 1]])

    monkeypatch.setattr(faiss, "SearchParametersCagra", lambda itopk_size: itopk_size, raising=False)
    _, items = gpu.search_graph(Short(), np.zeros((1, 2), np.float32), 3, breadth=64, num_vectors=6)
    assert items.tolist() == [[4, 5, -1]]


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.has_cuvs() or faiss.get_num_gpus() == 0, reason="this Faiss builds no graphs on a GPU")
def test_a_gpu_builds_a_graph_that_it_and_the_cpu_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = directions(COUNT)
    index = ItemIndex.build(tmp_path, vectors, "cagra", num_shards=2)
    assert index._on_gpu is not None
    finds_most(index, vectors)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    finds_most(ItemIndex.load(tmp_path, vectors), vectors)
