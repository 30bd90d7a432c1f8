from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer, tokenizer_report
from recsys.tokenizer import report as report_module
from recsys.tokenizer.agreement import agreement, chance
from recsys.tokenizer.config import CollisionStrategy
from recsys.tokenizer.new_item_report import new_item_report


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
    assert report["moved_mean_rank"] == report["moved_median_rank"] == 1.0
    assert report["moved_codes"] == 1.0


def test_cost_of_uniqueness_is_the_error_of_moved_items_before_and_after(report: dict) -> None:
    # Item 1 lies on its codeword; the one it moved to is 2 away.
    assert (report["moved_mse_before"], report["moved_mse_after"]) == (0.0, 4.0)


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


@pytest.mark.parametrize("strategy", ["assignment", "greedy", "group_sinkhorn"])
def test_ranks_say_how_near_a_strategy_keeps_items(strategy: CollisionStrategy, embeddings) -> None:
    tokenizer = build_tokenizer(RKMeansConfig(levels=2, codebook_size=64, code_dim=8, collisions=strategy))
    ids = tokenizer.fit(embeddings)
    report = tokenizer_report(ids, tokenizer, embeddings)
    ranks = []
    for item in np.flatnonzero((ids.codes != ids.raw_codes).any(axis=1)):
        left = tokenizer.latents(embeddings[[item]])[0] - tokenizer.codebooks[0][ids.codes[item, 0]]
        nearer = np.argsort(((left - tokenizer.codebooks[1]) ** 2).sum(axis=1))
        ranks.append(int(np.flatnonzero(nearer == ids.codes[item, 1])[0]))
    assert report["moved_items"] == len(ranks)
    assert report["moved_mean_rank"] == pytest.approx(np.mean(ranks))
    assert report["moved_median_rank"] == np.median(ranks)
    assert (report["moved_mean_rank"] > 5) == (strategy == "group_sinkhorn")
    assert report["moved_mse_after"] > report["moved_mse_before"]


def test_extra_level_costs_no_error_and_has_no_rank(embeddings) -> None:
    tokenizer = build_tokenizer(RKMeansConfig(levels=2, codebook_size=24, code_dim=8, collisions="extra_level"))
    report = tokenizer_report(tokenizer.fit(embeddings), tokenizer, embeddings)
    assert report["moved_items"] > 0
    assert report["moved_mean_rank"] is None
    assert report["moved_mse_after"] == report["moved_mse_before"]
    assert report["rel_recon"][2] == report["rel_recon"][1] == report["rel_recon_resolved"]
    assert report["max_group_before"] > 1
    assert report["max_group"] == 1


# ---- parallel codes ----------------------------------------------------------------------------------------------


class TwoExperts:
    """Reconstructs, and can do nothing else."""

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        return codes.astype(np.float32)


def two_experts(codes: list[list[int]], pairs: list[list[int]] | None = None) -> dict:
    array = np.array(codes)
    raw = np.minimum(array, 1)
    ids = SemanticIds(codes=array, raw_codes=raw, codebook_sizes=(3, 3), ordered=False)
    return tokenizer_report(ids, TwoExperts(), raw.astype(np.float32), np.array(pairs) if pairs else None)  # type: ignore[arg-type]


def test_parallel_codes_are_judged_by_how_many_are_equal() -> None:
    report = two_experts([[0, 0], [0, 1], [1, 0], [1, 1]], [[0, 1], [0, 2], [0, 3], [1, 2]])
    assert report["ordered"] is False
    assert report["share_equal"] == [0.5, 0.0]
    # Of 16 ordered pairs 4 are an item with itself and 8 share one code.
    assert report["chance_equal"] == [0.75, 0.25]
    assert report["lift_equal"] == pytest.approx([2 / 3, 0.0])
    assert "share" not in report
    assert report["rel_recon"] == [0.0]
    assert report["perplexity"] == pytest.approx([2.0, 2.0])


def test_parallel_codes_that_move_have_a_cost_but_no_rank() -> None:
    report = two_experts([[0, 0], [1, 1], [1, 2]])
    assert report["moved_items"] == 1
    assert (report["moved_mse_before"], report["moved_mse_after"]) == (0.0, 1.0)
    assert report["moved_mean_rank"] is None
    assert "moved_above_last" not in report


def test_redundant_codebooks_have_mutual_information_and_random_ones_none() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 40, size=900)
    codes = np.stack([first, (first + 7) % 40, rng.integers(0, 40, size=900), np.arange(900)], axis=1)
    ids = SemanticIds(codes=codes, raw_codes=codes, codebook_sizes=(40, 40, 40, 900), ordered=False)
    report = tokenizer_report(ids, TwoExperts(), codes.astype(np.float32))  # type: ignore[arg-type]
    table = np.array(report["adjusted_mutual_information"])
    np.testing.assert_array_equal(table, table.T)
    assert table[0, 1] == pytest.approx(1.0)
    assert abs(table[0, 2]) < 0.03


def test_chance_of_parallel_codes_is_sampled_when_items_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 4, size=(2000, 3))
    exact = chance(codes, ordered=False)
    monkeypatch.setattr("recsys.tokenizer.agreement._CELLS", 400_000)
    np.testing.assert_allclose(chance(codes, ordered=False), exact, rtol=0.15)
    assert (chance(codes, ordered=False) != exact).any()


def test_agreement_is_down_to_a_depth_or_in_any_codes() -> None:
    first, second = np.array([[1, 2, 3], [1, 2, 3]]), np.array([[0, 2, 3], [1, 2, 0]])
    assert agreement(first, second, ordered=True).tolist() == [0.5, 0.5, 0.0]
    assert agreement(first, second, ordered=False).tolist() == [1.0, 1.0, 0.0]


# ---- new items ---------------------------------------------------------------------------------------------------


def catalogue_with_new_items(embeddings: np.ndarray) -> tuple[SemanticIds, object, np.ndarray]:
    new = np.arange(0, 400, 5)
    old = np.setdiff1d(np.arange(400), new)
    tokenizer = build_tokenizer(RKMeansConfig(codebook_size=16, code_dim=8))
    ids = tokenizer.fit(embeddings[old])
    codes, raw = np.empty((400, 3), dtype=np.int64), np.empty((400, 3), dtype=np.int64)
    codes[old], raw[old] = ids.codes, ids.raw_codes
    codes[new], raw[new] = tokenizer.encode(embeddings[new], ids.codes), tokenizer.encode_raw(embeddings[new])
    return SemanticIds(codes=codes, raw_codes=raw, codebook_sizes=ids.codebook_sizes), tokenizer, new


def test_new_items_stand_among_their_neighbours_as_existing_ones_do(embeddings) -> None:
    ids, tokenizer, new = catalogue_with_new_items(embeddings)
    report = new_item_report(ids, tokenizer, embeddings, new)
    assert (report["num_new"], report["num_existing"]) == (80, 320)
    recall = report["neighbour_recall"]
    assert recall["new"][0] > 0.6
    assert recall["new"][0] == pytest.approx(recall["existing"][0], abs=0.1)
    assert recall["new"][0] > 4 * recall["chance"][0]
    assert recall["new"] == sorted(recall["new"], reverse=True)
    # Item 0 is new and 1 its twin.
    assert report["on_existing_rate"] >= 1 / 80
    assert report["rel_recon"]["new"] < 0.5

    shuffled = ids.codes.copy()
    shuffled[new] = np.random.default_rng(0).permutation(ids.codes[new])
    wrong = SemanticIds(codes=shuffled, raw_codes=ids.raw_codes, codebook_sizes=ids.codebook_sizes)
    recall = new_item_report(wrong, tokenizer, embeddings, new)["neighbour_recall"]
    assert recall["new"][0] == pytest.approx(recall["chance"][0], abs=0.08)
    assert recall["existing"][0] > 0.6


def test_collisions_of_new_items_among_themselves_are_counted(embeddings) -> None:
    ids, tokenizer, new = catalogue_with_new_items(embeddings)
    raw = ids.raw_codes.copy()
    raw[new[:4]] = raw[new[0]]
    report = new_item_report(
        SemanticIds(codes=ids.codes, raw_codes=raw, codebook_sizes=ids.codebook_sizes), tokenizer, embeddings, new
    )
    assert report["max_group_before"] >= 4
    assert report["dup_rate_before"] == 1 - len(np.unique(raw[new], axis=0)) / 80


def test_report_on_no_new_items_is_an_error(embeddings) -> None:
    ids, tokenizer, _ = catalogue_with_new_items(embeddings)
    with pytest.raises(DataError, match="found 0 and 400"):
        new_item_report(ids, tokenizer, embeddings, np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize("block_cells", [1 << 6, 1 << 9])
def test_reports_are_the_same_slice_by_slice(block_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60, 5)).astype(np.float32)
    embeddings[1] = embeddings[0]
    pairs = rng.integers(0, 60, size=(30, 2))
    tokenizer = build_tokenizer(RKMeansConfig(levels=2, codebook_size=10, code_dim=4))
    ids = tokenizer.fit(embeddings)
    monkeypatch.setattr("recsys.tokenizer.report._RETRIEVAL_DEPTH", 5)
    whole = tokenizer_report(ids, tokenizer, embeddings, pairs)
    new = new_item_report(ids, tokenizer, embeddings, np.arange(0, 60, 4))
    monkeypatch.setattr("recsys.tokenizer.residual._BLOCK_CELLS", block_cells)
    assert flat(tokenizer_report(ids, tokenizer, embeddings, pairs)) == pytest.approx(flat(whole), rel=1e-6)
    assert flat(new_item_report(ids, tokenizer, embeddings, np.arange(0, 60, 4))) == pytest.approx(flat(new), rel=1e-6)


def flat(report: object, name: str = "") -> dict[str, float]:
    """The numbers of a report by their places in it."""
    if isinstance(report, dict):
        return {place: x for key, value in report.items() for place, x in flat(value, f"{name}.{key}").items()}
    if isinstance(report, list):
        return {place: x for key, value in enumerate(report) for place, x in flat(value, f"{name}.{key}").items()}
    return {} if report is None else {name: report}


def test_fewer_queries_are_asked_of_a_catalogue_of_millions(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    tokenizer = build_tokenizer(RKMeansConfig(levels=2, codebook_size=10, code_dim=4))
    ids = tokenizer.fit(embeddings)
    monkeypatch.setattr("recsys.tokenizer.report._MAX_RETRIEVAL_CELLS", 120)
    monkeypatch.setattr("recsys.tokenizer.report._RETRIEVAL_DEPTH", 60)
    asked: list[int] = []
    recall = report_module._recall

    def counted(vectors_of, num_items: int, pairs: np.ndarray) -> float:
        asked.append(len(pairs))
        return recall(vectors_of, num_items, pairs)

    monkeypatch.setattr(report_module, "_recall", counted)
    pairs = np.stack([np.arange(30), np.arange(30, 60)], axis=1)
    assert set(tokenizer_report(ids, tokenizer, embeddings, pairs)["i2i_recall@60"].values()) == {1.0}
    assert asked == [2, 2, 2]
