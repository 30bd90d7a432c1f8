from __future__ import annotations

import itertools

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer
from recsys.tokenizer.collisions import resolve_sets
from recsys.tokenizer.config import CollisionStrategy
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.residual import summed_codes
from recsys.tokenizer.retokenize import Retokenization, retokenize

CONFIG = RKMeansConfig(levels=3, codebook_size=16, code_dim=8)


def fitted(embeddings: np.ndarray, **settings: object) -> tuple[NearestCodeTokenizer, SemanticIds]:
    tokenizer = build_tokenizer(CONFIG.model_copy(update=settings))
    assert isinstance(tokenizer, NearestCodeTokenizer)
    return tokenizer, tokenizer.fit(embeddings)


def unlike_old_names(result: Retokenization, old: SemanticIds, old_rows: np.ndarray) -> int:
    kept = old_rows >= 0
    return int((result.ids.codes[kept] != old.codes[old_rows[kept]]).any(axis=1).sum())


def drifted(embeddings: np.ndarray, share: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=embeddings.shape)
    return (embeddings + share * embeddings.std() * noise).astype(np.float32)


@pytest.mark.parametrize("strategy", ["assignment", "greedy", "extra_level"])
def test_nothing_new_changes_nothing(strategy: CollisionStrategy, embeddings) -> None:
    tokenizer, ids = fitted(embeddings, collisions=strategy)
    result = retokenize(ids, embeddings, tokenizer, embeddings, np.arange(400), refitted=False)
    np.testing.assert_array_equal(result.ids.codes, ids.codes)
    np.testing.assert_array_equal(result.ids.raw_codes, ids.raw_codes)
    assert result.report["unchanged_items"] == {"count": 400, "renamed": 0}
    assert result.report["kept_share"] == [1.0] * ids.levels
    assert result.ids.ordinal == ids.ordinal


@pytest.mark.parametrize("strategy", ["assignment", "extra_level"])
def test_new_items_change_no_old_name(strategy: CollisionStrategy, embeddings) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(400)
    old, new = embeddings[order[:360]], embeddings[rng.permutation(400)]
    tokenizer, ids = fitted(old, collisions=strategy)
    new = embeddings
    old_rows = np.full(400, -1)
    old_rows[order[:360]] = np.arange(360)
    result = retokenize(ids, old, tokenizer, new, old_rows, refitted=False)
    assert unlike_old_names(result, ids, old_rows) == 0
    assert result.report["unchanged_items"] == {"count": 360, "renamed": 0}
    assert result.report["changed_items"] == {"count": 0, "renamed": 0}
    assert result.report["new_items"] == {"count": 40}
    fresh = old_rows < 0
    np.testing.assert_array_equal(result.ids.codes[fresh], tokenizer.encode(embeddings[fresh], ids.codes))


def test_removed_items_free_their_names(embeddings) -> None:
    tokenizer, ids = fitted(embeddings)
    # Items 2, 3 and 4 are equal; without them an equal new one may have the nearest codes for itself.
    old_rows = np.concatenate([[-1], np.setdiff1d(np.arange(400), [2, 3, 4])])
    vectors = np.concatenate([embeddings[2:3], embeddings[old_rows[1:]]])
    result = retokenize(ids, embeddings, tokenizer, vectors, old_rows, refitted=False)
    assert result.report["removed_items"] == 3
    assert unlike_old_names(result, ids, old_rows) == 0
    assert result.ids.codes[0].tolist() in ids.codes[[2, 3, 4]].tolist()


def test_changed_items_are_renamed_only_when_they_moved_to_other_codewords(embeddings) -> None:
    tokenizer, ids = fitted(embeddings)
    changed = embeddings.copy()
    changed[10] = embeddings[390]  # another cluster
    changed[20] += 1e-3
    assert (tokenizer.encode_raw(changed[20:21]) == ids.raw_codes[20]).all()
    result = retokenize(ids, embeddings, tokenizer, changed, np.arange(400), refitted=False)
    assert result.report["unchanged_items"] == {"count": 398, "renamed": 0}
    assert result.report["changed_items"] == {"count": 2, "renamed": 1}
    np.testing.assert_array_equal(result.ids.codes[10, :1], ids.raw_codes[390, :1])
    np.testing.assert_array_equal(result.ids.codes[20], ids.codes[20])


def test_codebooks_in_another_order_get_their_old_numbers_back(embeddings) -> None:
    tokenizer, ids = fitted(embeddings)
    rng = np.random.default_rng(3)
    shuffled = tokenizer.relabelled([rng.permutation(16) for _ in range(3)])
    assert (shuffled.encode_raw(embeddings) != ids.raw_codes).any(axis=1).mean() > 0.9
    result = retokenize(ids, embeddings, shuffled, embeddings, np.arange(400), refitted=True)
    np.testing.assert_array_equal(result.ids.codes, ids.codes)
    np.testing.assert_array_equal(result.tokenizer.encode_raw(embeddings), ids.raw_codes)
    for back, first in zip(result.tokenizer.codebooks, tokenizer.codebooks, strict=True):
        np.testing.assert_array_equal(back, first)


def test_refit_after_small_drift_keeps_far_more_names_when_codes_are_relabelled(embeddings) -> None:
    _, ids = fitted(embeddings)
    later = drifted(embeddings, 0.02)
    refit, plain = fitted(later, seed=5)
    result = retokenize(ids, embeddings, refit, later, np.arange(400), refitted=True)
    kept = 400 - unlike_old_names(result, ids, np.arange(400))
    kept_plain = int((plain.codes == ids.codes).all(axis=1).sum())
    assert kept_plain <= 4
    assert kept >= 20
    without, relabelled = (result.report[f"kept_share_{how}_relabelling"] for how in ("without", "with"))
    assert relabelled[0] > 0.6
    assert without[0] < 0.25
    assert relabelled[1] > 10 * without[1]
    assert result.report["changed_items"] == {"count": 400, "renamed": 400 - kept}
    # Relabelling finds what is there: among items that are not the old ones there is little to keep.
    others = retokenize(ids, embeddings, refit, later, np.random.default_rng(0).permutation(400), refitted=True)
    assert others.report["kept_share_with_relabelling"][0] < 0.3


@pytest.mark.parametrize("more_duplicates", [True, False])
def test_refitted_counting_level_may_have_another_size(more_duplicates: bool, embeddings) -> None:
    crowded = embeddings.copy()
    crowded[100:125] = crowded[100]
    old, new = (embeddings, crowded) if more_duplicates else (crowded, embeddings)
    _, ids = fitted(old, collisions="extra_level")
    refit, _ = fitted(new, collisions="extra_level", seed=5)
    sizes = ids.codebook_sizes[-1], refit.codebook_sizes[-1]
    assert sizes[1] > sizes[0] if more_duplicates else sizes[1] < ids.codes[:, -1].max()
    result = retokenize(ids, old, refit, new, np.arange(400), refitted=True)
    assert result.ids.codebook_sizes == refit.codebook_sizes == result.tokenizer.codebook_sizes
    assert result.ids.ordinal
    np.testing.assert_array_equal(result.tokenizer.encode_raw(new), result.ids.raw_codes)
    # Names stay where the nearest codes are the old ones and the old count still exists.
    stays = (result.ids.raw_codes == ids.raw_codes).all(axis=1) & (ids.codes[:, -1] < sizes[1])
    assert stays.sum() > 20
    np.testing.assert_array_equal(result.ids.codes[stays], ids.codes[stays])


def test_old_counts_beyond_a_smaller_counting_level_are_given_anew(embeddings) -> None:
    crowded = embeddings.copy()
    crowded[100:125] = crowded[100]
    tokenizer, ids = fitted(crowded, collisions="extra_level")
    assert ids.codes[100:125, -1].max() >= 24
    refit = tokenizer.relabelled([np.arange(size) for size in ids.codebook_sizes])
    refit._codebooks[-1] = refit._codebooks[-1][:10]
    # 20 of the crowd are removed: those who stay had counts up to 24, and 10 are left.
    rows = np.setdiff1d(np.arange(400), np.arange(100, 120))
    result = retokenize(ids, crowded, refit, crowded[rows], rows, refitted=True)
    fits = ids.codes[rows, -1] < 10
    assert 0 < (~fits).sum() <= 5
    np.testing.assert_array_equal(result.ids.codes[fits], ids.codes[rows[fits]])
    np.testing.assert_array_equal(result.ids.codes[~fits, :-1], ids.codes[rows[~fits], :-1])
    assert result.ids.codes[:, -1].max() < 10


def test_relabelled_tokenizer_goes_with_the_names(embeddings) -> None:
    _, ids = fitted(embeddings)
    later = drifted(embeddings, 0.02)
    refit, _ = fitted(later, seed=5)
    result = retokenize(ids, embeddings, refit, later, np.arange(400), refitted=True)
    np.testing.assert_array_equal(result.tokenizer.encode_raw(later), result.ids.raw_codes)
    new = result.tokenizer.encode(later[:5], result.ids.codes)
    assert not set(map(tuple, new.tolist())) & set(map(tuple, result.ids.codes.tolist()))
    # Only the numbers are others: the codewords an item gets are those of the refit.
    np.testing.assert_array_equal(
        summed_codes(result.ids.raw_codes, result.tokenizer.codebooks),
        summed_codes(refit.encode_raw(later), refit.codebooks),
    )
    np.testing.assert_array_equal(
        result.tokenizer.reconstruct(result.ids.raw_codes), refit.reconstruct(refit.encode_raw(later))
    )


def test_same_input_same_names(embeddings) -> None:
    _, ids = fitted(embeddings)
    refit, _ = fitted(drifted(embeddings, 0.02), seed=5)
    first, second = (
        retokenize(ids, embeddings, refit, drifted(embeddings, 0.02), np.arange(400), refitted=True) for _ in range(2)
    )
    np.testing.assert_array_equal(first.ids.codes, second.ids.codes)
    assert first.report == second.report


class Corners:
    """Two parallel codebooks of three codes: the nearest of 0, 1 and 2 in each of two dimensions."""

    codebook_sizes = (3, 3)

    def _distances(self, embeddings: np.ndarray) -> np.ndarray:
        return np.square(embeddings.astype(np.float64)[:, :, None] - np.arange(3.0))

    def encode_raw(self, embeddings: np.ndarray) -> np.ndarray:
        return self._distances(embeddings).argmin(axis=2)

    def encode(self, embeddings: np.ndarray, taken: np.ndarray) -> np.ndarray:
        return resolve_sets(self.encode_raw(embeddings), self._distances(embeddings), taken)


def test_parallel_codes_keep_their_names_too_but_cannot_be_refitted() -> None:
    tokenizer = Corners()
    old = np.array(list(itertools.product([0, 1], [0, 1])), dtype=np.float32)
    codes = tokenizer.encode_raw(old)
    ids = SemanticIds(codes=codes, raw_codes=codes, codebook_sizes=(3, 3), ordered=False)
    new = np.concatenate([old[::-1], [[0.1, 1.4]]]).astype(np.float32)
    old_rows = np.array([3, 2, 1, 0, -1])
    result = retokenize(ids, old, tokenizer, new, old_rows, refitted=False)  # type: ignore[arg-type]
    np.testing.assert_array_equal(result.ids.codes, [*codes[::-1].tolist(), [0, 2]])
    assert not result.ids.ordered
    with pytest.raises(DataError, match="Corners cannot take over old numbers"):
        retokenize(ids, old, tokenizer, new, old_rows, refitted=True)  # type: ignore[arg-type]


def test_what_does_not_fit_together_is_named(embeddings) -> None:
    tokenizer, ids = fitted(embeddings)
    other, _ = fitted(embeddings, seed=1)
    rows = np.arange(400)
    with pytest.raises(DataError, match=r"made by another tokenizer; .*refitted=True"):
        retokenize(ids, embeddings, other, embeddings, rows, refitted=False)
    larger, _ = fitted(embeddings, codebook_size=20)
    with pytest.raises(DataError, match=r"codebooks of \[16, 16, 16\], the tokenizer of \[20, 20, 20\]"):
        retokenize(ids, embeddings, larger, embeddings, rows, refitted=True)
    counting, _ = fitted(embeddings, levels=2, collisions="extra_level")
    with pytest.raises(DataError, match=r"only one has a level that counts .*same tokenizer\.collisions"):
        retokenize(ids, embeddings, counting, embeddings, rows, refitted=True)
    for bad, message in (
        (rows[:7], r"must be int64 \[400\]"),
        (np.where(rows == 5, 400, rows), "400 is no row of the 400 old items"),
        (np.where(rows == 5, 6, rows), "old item 6 occurs 2 times"),
    ):
        with pytest.raises(DataError, match=message):
            retokenize(ids, embeddings, tokenizer, embeddings, bad, refitted=False)
    with pytest.raises(DataError, match="399 old vectors, but names for 400"):
        retokenize(ids, embeddings[1:], tokenizer, embeddings, rows, refitted=False)
