from __future__ import annotations

import numpy as np
import pytest

from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer, tokenizer_report


class FourCorners:
    """Two levels of two codes on a plane: the first code is the side, the second the height."""

    codebooks = [  # noqa: RUF012
        np.array([[-4.0, 0.0], [4.0, 0.0]], dtype=np.float32),
        np.array([[0.0, -1.0], [0.0, 1.0], [0.0, 5.0]], dtype=np.float32),
    ]
    codebook_sizes = (2, 3)

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings.astype(np.float64)

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        return sum(self.codebooks[level][codes[:, level]] for level in range(codes.shape[1]))


def four_corners(pairs: list[list[int]]) -> dict:
    # Items 0 and 1 are equal, so 1 must move; 2 and 3 sit on codewords.
    embeddings = np.array([[-4, -1], [-4, -1], [4, -1], [4, 1]], dtype=np.float32)
    raw = np.array([[0, 0], [0, 0], [1, 0], [1, 1]])
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    ids = SemanticIds(codes=codes, raw_codes=raw, codebook_sizes=(2, 3))
    return tokenizer_report(ids, FourCorners(), embeddings, np.array(pairs))


@pytest.fixture
def report() -> dict:
    return four_corners([[0, 1], [2, 3], [0, 2], [1, 3]])


def test_collisions_are_counted_before_and_after(report: dict) -> None:
    assert (report["dup_rate_before"], report["dup_rate"]) == (0.25, 0.0)
    assert (report["in_group_rate_before"], report["in_group_rate"]) == (0.5, 0.0)
    assert (report["max_group_before"], report["max_group"]) == (2, 1)
    assert report["exact_dup_rate"] == 0.25


def test_code_usage_is_counted_per_level_over_the_catalogue(report: dict) -> None:
    assert report["perplexity"] == pytest.approx([2.0, 2.0])
    assert report["perplexity_before"] == pytest.approx([2.0, np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))])
    assert report["used_codes"] == [2, 2]
    assert report["dead_codes"] == [0, 1]


def test_moves_are_measured_by_how_many_codes_were_nearer(report: dict) -> None:
    assert report["moved_items"] == 1
    assert report["moved_above_last"] == 0
    assert report["moved_mean_rank"] == 1.0


def test_reconstruction_is_relative_to_the_variance(report: dict) -> None:
    # Around the mean (0, -0.5): 4 * 16 + 3 * 0.25 + 2.25 = 67.
    assert report["rel_recon"] == pytest.approx([4 / 67, 0.0])
    assert report["rel_recon_resolved"] == pytest.approx(4 / 67)


def test_shared_prefixes_are_set_against_chance(report: dict) -> None:
    assert report["share"] == [0.5, 0.0]
    assert report["chance"] == [0.5, 0.25]
    assert report["lift"] == [1.0, 0.0]


def test_item_after_itself_is_no_pair(report: dict) -> None:
    assert four_corners([[0, 0], [0, 1], [2, 3], [3, 3], [0, 2], [1, 3]]) == report
    assert "share" not in four_corners([[0, 0], [3, 3]])


def test_pairs_are_optional(embeddings) -> None:
    tokenizer = build_tokenizer(RKMeansConfig(codebook_size=16, code_dim=8))
    report = tokenizer_report(tokenizer.fit(embeddings), tokenizer, embeddings)
    assert "share" not in report
    assert report["moved_mean_rank"] <= 5


def test_neighbours_are_found_by_quantized_vectors_but_not_by_random_ones(embeddings) -> None:
    tokenizer = build_tokenizer(RKMeansConfig(codebook_size=16, code_dim=8))
    ids = tokenizer.fit(embeddings)
    rng = np.random.default_rng(0)
    # Pairs inside the clusters of 50.
    first = rng.integers(0, 400, size=3000)
    pairs = np.stack([first, first // 50 * 50 + (first + rng.integers(1, 50, size=3000)) % 50], axis=1)
    report = tokenizer_report(ids, tokenizer, embeddings, pairs)
    recall = report["i2i_recall@50"]
    assert recall["quantized"] > 0.9
    assert recall["embeddings"] > 0.9
    assert recall["random"] == pytest.approx(50 / 400, abs=0.05)
    assert report["lift"][0] > 5
