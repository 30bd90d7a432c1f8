from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from recsys.tokenizer import RKMeansConfig, build_tokenizer
from recsys.tokenizer.balanced import balanced_kmeans, capacity_assignment, fit_balanced_codebooks
from recsys.tokenizer.residual import kmeans, nearest_code, nearest_codes


def long_tail(num_items: int = 1003, dim: int = 6) -> np.ndarray:
    """float64 [num_items, dim]: half of the points in one clump, the others spread out."""
    rng = np.random.default_rng(0)
    return np.concatenate([0.05 * rng.normal(size=(num_items // 2, dim)), rng.normal(size=(-(-num_items // 2), dim))])


def squared_error(vectors: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> float:
    return float(((vectors - codebook[codes]) ** 2).sum())


def test_nearest_points_win_and_the_others_go_to_the_next_centroid_with_room() -> None:
    points = np.array([[0.3], [0.1], [0.2], [0.4], [4.0]])
    centroids = np.array([[0.0], [2.0], [4.0]], dtype=np.float32)
    # All but the last ask the first centroid; it takes .1 and .2. The other two go on to the second.
    assert capacity_assignment(points, centroids, 2).tolist() == [1, 0, 0, 1, 2]


def test_without_a_binding_capacity_every_point_gets_its_nearest() -> None:
    vectors = long_tail()
    codebook = kmeans(vectors, 16, 5, seed=1)
    np.testing.assert_array_equal(capacity_assignment(vectors, codebook, len(vectors)), nearest_code(vectors, codebook))


@pytest.mark.parametrize("num_clusters", [7, 16, 1003])
def test_no_cluster_exceeds_its_share_whatever_the_data(num_clusters: int) -> None:
    vectors = long_tail()
    vectors[:300] = vectors[0]  # exact duplicates
    capacity = -(-len(vectors) // num_clusters)
    _, assigned = balanced_kmeans(vectors, kmeans(vectors, num_clusters, 5, seed=1))
    assert np.bincount(assigned).max() <= capacity
    assert assigned.min() >= 0


def test_centroids_are_the_means_of_their_points() -> None:
    vectors = long_tail()
    codebook, assigned = balanced_kmeans(vectors, kmeans(vectors, 16, 5, seed=1))
    for code in range(16):
        np.testing.assert_allclose(codebook[code], vectors[assigned == code].mean(axis=0), atol=1e-6)


def test_iterations_lower_the_error_and_stay_near_plain_kmeans() -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 6))
    start = kmeans(vectors, 32, 20, seed=1)
    errors = [squared_error(vectors, *balanced_kmeans(vectors, start, rounds)) for rounds in (1, 12)]
    plain = squared_error(vectors, start, nearest_code(vectors, start))
    assert plain < errors[1] < errors[0]
    assert errors[1] < 1.15 * plain


def test_centroid_without_points_stays_where_it_was() -> None:
    # Four points and three centroids: two have room for all.
    vectors = np.array([[0.0], [0.1], [5.0], [5.0]])
    start = np.array([[0.0], [5.0], [100.0]], dtype=np.float32)
    codebook, assigned = balanced_kmeans(vectors, start)
    assert assigned.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(codebook[:, 0], [0.05, 5.0, 100.0], rtol=1e-6)


def test_only_the_levels_asked_for_are_balanced() -> None:
    vectors = long_tail()
    capacity = -(-len(vectors) // 16)
    settings = {"levels": 3, "codebook_size": 16, "iterations": 10, "seed": 0}
    for balance_first in (False, True):
        codebooks, codes = fit_balanced_codebooks(vectors, **settings, balance_first=balance_first)
        largest = [int(np.bincount(column).max()) for column in codes.T]
        assert (largest[0] <= capacity) == balance_first
        assert max(largest[1:]) <= capacity
        assert [book.shape for book in codebooks] == [(16, 6)] * 3
    np.testing.assert_array_equal(codes, fit_balanced_codebooks(vectors, **settings, balance_first=True)[1])


def test_items_keep_their_balanced_codes_and_new_ones_get_the_nearest() -> None:
    embeddings = long_tail().astype(np.float32)
    config = RKMeansConfig(levels=2, codebook_size=64, code_dim=6, balanced="all")
    tokenizer = build_tokenizer(config)
    ids = tokenizer.fit(embeddings)
    # Collisions are resolved by the last code, so the first is as balanced as it was.
    assert np.bincount(ids.codes[:, 0]).max() <= -(-len(embeddings) // 64)
    assert np.bincount(ids.raw_codes[:, 0]).max() > -(-len(embeddings) // 64)
    np.testing.assert_array_equal(ids.raw_codes, nearest_codes(tokenizer.latents(embeddings), tokenizer.codebooks))
    np.testing.assert_array_equal(tokenizer.encode_raw(embeddings), ids.raw_codes)
    plain = build_tokenizer(config.model_copy(update={"balanced": "none"})).fit(embeddings)
    assert np.bincount(plain.codes[:, 0]).max() > -(-len(embeddings) // 64)


def test_uneven_usage_is_warned_about_unless_balanced(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    clump = np.concatenate([np.zeros((900, 6)), rng.normal(size=(100, 6))]).astype(np.float32)
    config = RKMeansConfig(levels=2, codebook_size=64, code_dim=6)
    build_tokenizer(config).fit(clump)
    message = capsys.readouterr().err
    assert "warning: of 64 codes level 1 uses" in message
    assert "(perplexity" in message
    assert "tokenizer.balanced" in message
    assert message.count("warning") == 1
    build_tokenizer(config.model_copy(update={"balanced": "all"})).fit(clump)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("balanced", ["none", "lower"])
def test_benchmark_of_a_million_measures_fewer_items_too(balanced: str) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "tokenize_million.py"
    spec = spec_from_file_location("tokenize_million", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = ["--items", "3000", "--dim", "24", "--levels", "2", "--codebook-size", "64", "--balanced", balanced]
    result = module.main(sizes)
    assert (result["items"], result["dim"], result["levels"], result["codebook_size"]) == (3000, 24, 2, 64)
    assert result["dup_rate"] == 0.0
    assert 0 < result["dup_rate_before"] < 1
    assert len(result["perplexities"]) == 2
    assert all(0.4 * 64 < perplexity <= 64 for perplexity in result["perplexities"])
    assert result["peak_memory_mib"] > 3000 * 24 * 4 / 2**20
    assert result["seconds"] > 0
