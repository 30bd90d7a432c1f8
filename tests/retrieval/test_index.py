"""The Faiss index against brute force: every kind, ties, constraints of a request, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.errors import ArtifactError, DataError
from recsys.generator import Constraints
from recsys.retrieval.config import FusionConfig
from recsys.retrieval.index import Hits, ItemIndex, choose_kind
from recsys.retrieval.shards import IndexKind


def brute_force(
    vectors: np.ndarray, queries: np.ndarray, n: int, permitted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Permitted items in descending order of their inner products, equal ones by index."""
    items = np.full((len(queries), n), -1)
    scores = np.full((len(queries), n), -np.inf, dtype=np.float32)
    for row, query in enumerate(queries):
        all_scores = vectors @ query
        best = [item for item in np.lexsort((np.arange(len(vectors)), -all_scores)) if permitted[row, item]][:n]
        items[row, : len(best)], scores[row, : len(best)] = best, all_scores[best]
    return items, scores


def permitted_by(constraints: Constraints, shape: tuple[int, int]) -> np.ndarray:
    permitted = np.ones(shape, dtype=bool) if constraints.allow is None else np.broadcast_to(constraints.allow, shape)
    permitted = permitted.copy()
    for row, denied in enumerate(constraints.deny or []):
        permitted[row, denied] = False
    return permitted


def equals_brute_force(hits: Hits, vectors: np.ndarray, queries: np.ndarray, n: int, constraints: Constraints) -> None:
    items, scores = brute_force(vectors, queries, n, permitted_by(constraints, (len(queries), len(vectors))))
    np.testing.assert_array_equal(hits.items, items)
    np.testing.assert_array_equal(hits.scores, scores)


def whole_numbers(shape: tuple[int, int], seed: int, largest: int = 2) -> np.ndarray:
    """Small whole numbers: inner products are exact in any order of summation, and full of ties."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(1, 40),
    num_queries=st.sampled_from([1, 4, 12]),
    n=st.integers(1, 50),
    share=st.sampled_from([None, 0.05, 0.3, 0.9]),
    num_denied=st.sampled_from([None, 0, 3, 40]),
    per_request=st.booleans(),
)
def test_a_flat_index_is_brute_force_whatever_the_constraints_and_ties(
    seed: int, num_items: int, num_queries: int, n: int, share: float | None, num_denied: int | None, per_request: bool
) -> None:
    random = np.random.default_rng(seed)
    vectors, queries = whole_numbers((num_items, 3), seed, 1), whole_numbers((num_queries, 3), seed + 1, 1)
    allow = None if share is None else random.random((num_queries, num_items) if per_request else num_items) < share
    deny = None if num_denied is None else [random.integers(0, num_items, num_denied) for _ in queries]
    constraints = Constraints(allow=allow, deny=deny)
    hits = ItemIndex(vectors, "flat").search(queries, n, constraints)
    equals_brute_force(hits, vectors, queries, n, constraints)


def test_items_of_equal_score_come_in_the_order_of_their_indices() -> None:
    vectors = np.ones((30, 2), dtype=np.float32)
    hits = ItemIndex(vectors, "flat").search(np.ones((1, 2), dtype=np.float32), 5, Constraints(deny=[np.array([0, 2])]))
    assert hits.items.tolist() == [[1, 3, 4, 5, 6]]
    assert hits.scores.tolist() == [[2.0] * 5]


def test_everything_denied_is_an_empty_list() -> None:
    vectors = whole_numbers((9, 3), 0)
    queries = whole_numbers((2, 3), 1)
    for constraints in (Constraints(deny=[np.arange(9)] * 2), Constraints(allow=np.zeros(9, dtype=bool))):
        hits = ItemIndex(vectors, "flat").search(queries, 4, constraints)
        assert (hits.items == -1).all()
        assert np.isneginf(hits.scores).all()


def test_no_queries_are_no_lists() -> None:
    hits = ItemIndex(whole_numbers((9, 3), 0)).search(np.zeros((0, 3), dtype=np.float32), 4)
    assert hits.items.shape == hits.scores.shape == (0, 4)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq", "ivf_rabitq"])
def test_an_approximate_index_finds_most_and_keeps_every_constraint(kind: IndexKind) -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(20, 16))
    vectors = (centres[random.integers(0, 20, 3000)] + 0.3 * random.normal(size=(3000, 16))).astype(np.float32)
    queries = vectors[random.choice(3000, 40, replace=False)]
    index = ItemIndex(vectors, kind)
    allow = random.random((40, 3000)) < 0.5
    deny = [random.choice(3000, 50, replace=False) for _ in queries]
    for constraints in (Constraints(), Constraints(allow=allow, deny=deny)):
        hits = index.search(queries, 10, constraints)
        permitted = permitted_by(constraints, (40, 3000))
        assert (hits.items >= 0).all()
        assert np.take_along_axis(permitted, hits.items, axis=1).all()
        expected, _ = brute_force(vectors, queries, 10, permitted)
        found = np.mean([len(np.intersect1d(*rows)) / 10 for rows in zip(hits.items, expected, strict=True)])
        assert found > 0.9
        products = np.einsum("bd,bkd->bk", queries, vectors[hits.items])
        np.testing.assert_allclose(hits.scores, products, rtol=1e-4)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq", "ivf_rabitq"])
def test_what_an_approximate_index_leaves_short_is_filled_up_by_brute_force(kind: IndexKind) -> None:
    vectors = whole_numbers((2000, 8), 3)
    queries = whole_numbers((3, 8), 4)
    few = np.zeros(2000, dtype=bool)
    few[[5, 600, 1999]] = True
    constraints = Constraints(allow=few)
    hits = ItemIndex(vectors, kind).search(queries, 6, constraints)
    equals_brute_force(hits, vectors, queries, 6, constraints)


def test_the_kind_follows_the_number_of_items() -> None:
    assert [choose_kind(number) for number in (50_000, 50_001, 5_000_000, 5_000_001)] == [
        "flat",
        "hnsw",
        "hnsw",
        "ivf_rabitq",
    ]


def test_the_setting_of_a_fusion_names_every_kind_and_no_other() -> None:
    assert get_args(FusionConfig.model_fields["index"].annotation) == ("auto", *get_args(IndexKind))
    with pytest.raises(ValidationError, match="index"):
        FusionConfig.model_validate({"index": "ivf_rabitqfs"})


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq", "ivf_rabitq"])
def test_an_index_comes_back_from_disk_the_same(kind: IndexKind, tmp_path: Path) -> None:
    vectors, queries = whole_numbers((800, 8), 0), whole_numbers((5, 8), 1)
    index = ItemIndex(vectors, kind)
    index.save(tmp_path)
    loaded = ItemIndex.load(tmp_path, vectors)
    assert loaded.kind == kind
    first, second = index.search(queries, 7), loaded.search(queries, 7)
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of maps here")
@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq", "ivf_rabitq"])
def test_a_loaded_index_is_a_map_of_its_file_and_survives_its_replacement(kind: IndexKind, tmp_path: Path) -> None:
    vectors, queries = whole_numbers((800, 8), 0), whole_numbers((5, 8), 1)
    index = ItemIndex(vectors, kind)
    index.save(tmp_path)
    loaded = ItemIndex.load(tmp_path, vectors)
    assert str(tmp_path / "index-00000.faiss") in Path("/proc/self/maps").read_text()
    ItemIndex(-vectors, kind).save(tmp_path)
    np.testing.assert_array_equal(loaded.search(queries, 7).items, index.search(queries, 7).items)


def test_one_bit_a_component_is_small_and_built_over_a_map_of_the_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    index = ItemIndex(mapped, "ivf_rabitq")
    assert np.shares_memory(index.vectors, mapped)
    index.save(tmp_path)
    assert (tmp_path / "index-00000.faiss").stat().st_size < vectors.nbytes / 4
    hits, expected = index.search(vectors[:30], 5), ItemIndex(vectors, "ivf_rabitq").search(vectors[:30], 5)
    np.testing.assert_array_equal(hits.items, expected.items)
    assert (hits.items[:, 0] == np.arange(30)).all()


def test_vectors_of_any_lengths_are_found() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, 16))
    vectors = centres[random.integers(0, 60, 6000)] + 0.5 * random.normal(size=(6000, 16))
    vectors = (vectors * np.exp(0.7 * random.normal(size=(6000, 1)))).astype(np.float32)
    queries = (centres[:40] + 0.5 * random.normal(size=(40, 16))).astype(np.float32)
    expected, _ = brute_force(vectors, queries, 10, np.ones((40, 6000), dtype=bool))
    index = ItemIndex(vectors, "ivf_rabitq")
    found = index.search(queries, 10).items
    # Over the vectors as they are it is .88 here, and a third where there are many more cells than are looked into.
    assert np.mean([len(np.intersect1d(*rows)) / 10 for rows in zip(found, expected, strict=True)]) > 0.9


def test_what_is_refined_in_parts_is_what_is_refined_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    index = ItemIndex(random.normal(size=(900, 8)).astype(np.float32), "ivf_rabitq")
    queries = random.normal(size=(7, 8)).astype(np.float32)
    at_once = index.search(queries, 9)
    monkeypatch.setattr("recsys.retrieval.index._REFINED_FLOATS", 3 * 8 * 8 * 10)
    in_parts = index.search(queries, 9)
    np.testing.assert_array_equal(in_parts.items, at_once.items)
    np.testing.assert_array_equal(in_parts.scores, at_once.scores)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_rabitq"])
def test_an_index_over_other_vectors_or_from_changed_files_is_refused(kind: IndexKind, tmp_path: Path) -> None:
    vectors = whole_numbers((50, 4), 0)
    ItemIndex(vectors, kind).save(tmp_path)
    with pytest.raises(ArtifactError, match="built over other vectors"):
        ItemIndex.load(tmp_path, vectors + 1)
    (tmp_path / "index-00000.faiss").write_bytes(b"IxHN" + b"\xff" * 100)
    with pytest.raises(ArtifactError, match=r"index-00000\.faiss was changed"):
        ItemIndex.load(tmp_path, vectors)
    facts = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(facts | {"format": 9}))
    with pytest.raises(ArtifactError, match="has format 9"):
        ItemIndex.load(tmp_path, vectors)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot read"):
        ItemIndex.load(tmp_path, vectors)


def test_vectors_and_questions_that_make_no_sense_are_refused() -> None:
    for bad in (np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(DataError, match="an index needs finite vectors"):
            ItemIndex(bad)
    index = ItemIndex(whole_numbers((5, 3), 0))
    with pytest.raises(ValueError, match="n must be at least 1"):
        index.search(np.zeros((1, 3), np.float32), 0)
    with pytest.raises(ValueError, match=r"queries \[B, 3\]"):
        index.search(np.zeros((1, 2), np.float32), 1)
