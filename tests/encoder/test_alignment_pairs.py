"""Texts, batches, masks and retrieval on data small enough to check by eye."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse

from recsys.data import Catalog, Sequences
from recsys.encoder.alignment.batch_loss import batch_loss, plan_batch
from recsys.encoder.alignment.config import AlignmentConfig, ProfileConfig
from recsys.encoder.alignment.objective import item_item_loss, user_item_loss
from recsys.encoder.alignment.pairs import PairSampler, nearest_items, pasts
from recsys.encoder.alignment.profiles import NUM_PHRASINGS, item_profiles, user_texts
from recsys.encoder.alignment.retrieval import alignment_gap, bag_of_words, mean_item_vectors, retrieval_recall
from recsys.encoder.alignment.tuning import learning_rate_factor, split_holdout
from recsys.encoder.collaborative import item_pairs
from recsys.errors import DataError

ALL = ProfileConfig(field_dropout=0)


def small_catalog() -> Catalog:
    return Catalog(
        frame=pl.DataFrame(
            {
                "item_id": list("abcd"),
                "title": ["Red lamp", "Blue lamp of glass", None, "Oak desk"],
                "categories": [["Home", "Lamps"], ["Home", "Lamps"], [], ["Home", "Desks"]],
                "brand": ["Lux", None, None, "Wood"],
                "description": ["one two three four", None, None, "five six"],
            }
        )
    )


TRAIN = Sequences.from_lists([[0, 1, 2], [3, 0], [1], [2, 3, 0, 1]])


def test_plain_phrasing_says_every_field_once() -> None:
    texts = item_profiles(small_catalog(), ProfileConfig(field_dropout=0, description_words=2), 0)
    assert sorted(texts[0].split(". ")) == ["Brand: Lux", "Categories: Home, Lamps", "Red lamp", "one two"]
    assert sorted(texts[1].split(". ")) == ["Blue lamp of glass", "Categories: Home, Lamps"]
    assert texts[2] == ""


def test_phrasings_differ_and_are_the_same_under_a_seed() -> None:
    config = ProfileConfig()
    texts = [item_profiles(small_catalog(), config, number, seed=4) for number in range(NUM_PHRASINGS)]
    assert texts == [item_profiles(small_catalog(), config, number, seed=4) for number in range(NUM_PHRASINGS)]
    assert len({variant[3] for variant in texts}) == NUM_PHRASINGS
    assert all("Oak desk" in variant[3] for variant in texts), "the title is never left out"
    assert any("Wood" not in variant[3] for variant in texts)
    assert texts != [item_profiles(small_catalog(), config, number, seed=5) for number in range(NUM_PHRASINGS)]


def test_columns_that_the_catalogue_lacks_are_not_missed() -> None:
    catalog = Catalog(frame=small_catalog().frame.drop("brand", "description"))
    assert sorted(item_profiles(catalog, ALL, 0)[0].split(". ")) == ["Categories: Home, Lamps", "Red lamp"]


def test_user_text_names_latest_titles_and_telling_categories() -> None:
    histories = Sequences.from_lists([[3, 0, 1, 2], [2], [0, 0]])
    texts = user_texts(small_catalog(), histories, ProfileConfig(history_titles=2, title_words=3, top_categories=1))
    # "Home" is in three of four items and says nothing; item 2 has neither title nor category.
    assert texts == ["Interests: Lamps. Bought: Blue lamp of; Red lamp", "", "Interests: Lamps. Bought: Red lamp"]


def test_user_phrasings_keep_the_latest_title_and_leave_out_others() -> None:
    histories = Sequences.from_lists([[0, 3, 1]])
    texts = [user_texts(small_catalog(), histories, ProfileConfig(field_dropout=0.6), n)[0] for n in range(1, 8)]
    assert all("Blue lamp of glass" in text for text in texts)
    assert any("Red lamp" not in text for text in texts)
    assert len(set(texts)) == len(texts)


def test_pairs_are_within_the_window_and_of_different_items() -> None:
    train = Sequences.from_lists([[0, 1, 0, 2], [3, 3]])
    assert sorted(map(tuple, item_pairs(train, 1).tolist())) == [(0, 1), (0, 2), (1, 0)]
    assert sorted(map(tuple, item_pairs(train, 2).tolist())) == [(0, 1), (0, 2), (1, 0), (1, 2)]


def test_every_user_comes_once_a_pass_with_a_past_and_the_true_positive() -> None:
    sampler = PairSampler(TRAIN, 4, AlignmentConfig(batch_size=3))
    batches = sampler.batches(np.random.default_rng(0))
    seen_cuts = set()
    for _ in range(30):
        batch = next(batches)
        assert sorted(batch.users.tolist()) == [0, 1, 3], "history 2 has one item, no past"
        for user, cut, positive in zip(batch.users, batch.cuts, batch.candidates, strict=True):
            assert TRAIN[user][cut] == positive
            seen_cuts.add((int(user), int(cut)))
    assert seen_cuts == {(0, 1), (0, 2), (1, 1), (3, 1), (3, 2), (3, 3)}
    past = pasts(TRAIN, np.array([3, 0]), np.array([2, 1]))
    assert [part.tolist() for part in past] == [[2, 3], [0]]


def test_masks_hold_what_users_and_items_are_known_to_go_with() -> None:
    sampler = PairSampler(TRAIN, 4, AlignmentConfig(batch_size=3, window=1))
    together = {(0, 1), (1, 2), (3, 0), (2, 3)}
    for batch, _ in zip(sampler.batches(np.random.default_rng(1)), range(10), strict=False):
        for row, user in enumerate(batch.users):
            for column, item in enumerate(batch.candidates):
                assert batch.known[row, column] == (item in TRAIN[user])
        for row, (left, mate) in enumerate(batch.pairs.tolist()):
            assert (left, mate) in together or (mate, left) in together
            for column, right in enumerate(batch.pairs[:, 1].tolist()):
                expected = left == right or (left, right) in together or (right, left) in together
                assert batch.pairs_known[row, column] == expected


def test_log_rates_are_those_of_the_draws() -> None:
    sampler = PairSampler(TRAIN, 5, AlignmentConfig(batch_size=3, window=1))
    # Each of three users is as frequent, and so is each of a user's places but the first.
    rate = np.array([1 + 1 / 3, 1 / 2 + 1 / 3, 1 / 2, 1 / 3]) / 3 * 5
    np.testing.assert_allclose(sampler.log_rate, [*np.log(rate), 0.0], atol=1e-6)
    degree = np.array([4, 3, 2, 3]) / 12 * 5
    np.testing.assert_allclose(sampler.pair_log_rate, [*np.log(degree), 0.0], atol=1e-6)
    batches = sampler.batches(np.random.default_rng(0))
    draws = np.concatenate([next(batches).candidates for _ in range(2000)])
    np.testing.assert_allclose(np.bincount(draws) / len(draws) * 5, rate, rtol=0.05)


def test_fixed_cuts_restrict_users_and_positives() -> None:
    sampler = PairSampler(TRAIN, 4, AlignmentConfig(batch_size=9), cuts=np.array([2, 0, 0, 1]))
    batch = next(sampler.batches(np.random.default_rng(0)))
    assert sorted(zip(batch.users.tolist(), batch.candidates.tolist(), strict=True)) == [(0, 2), (3, 3)]
    np.testing.assert_allclose(sampler.log_rate, [0, 0, np.log(2), np.log(2)], atol=1e-6)


def test_hard_negatives_are_near_in_text_but_never_consumed_together() -> None:
    # Item 5 is nearest to all, but nobody consumed it.
    vectors = np.array([[1, 0], [0.99, 0.1], [0.9, 0.4], [0, 1], [0.95, 0.2], [0.9, 0.3]], dtype=np.float32)
    train = Sequences.from_lists([[0, 1], [3, 2], [4]])
    nearest = nearest_items(vectors, train, window=1, pool=2)
    assert nearest[0].tolist() == [4, 2], "1 is nearest but was consumed with 0"
    assert nearest[3].tolist() == [4, 1], "2 was consumed with 3"
    config = AlignmentConfig(batch_size=2, hard_negatives=3)
    batch = next(PairSampler(train, 6, config, nearest).batches(np.random.default_rng(0)))
    assert batch.candidates.shape == (2 + 6,)
    for user in range(2):
        mined = batch.candidates[2 + 3 * user : 5 + 3 * user]
        assert set(mined.tolist()) <= set(nearest[batch.candidates[user]].tolist())
    everything = Sequences.from_lists([[0, 1], [0, 2], [0, 3], [0, 4]])
    with pytest.raises(DataError, match="consumed together with all other 4; set it to 0"):
        nearest_items(vectors, everything, 1, 2)


def test_too_few_histories_are_one_error() -> None:
    with pytest.raises(DataError, match="at least 2 training histories of 2 items or more, found 1 of 2"):
        PairSampler(Sequences.from_lists([[0, 1], [1]]), 2, AlignmentConfig())
    with pytest.raises(DataError, match="at least 5 training histories of 2 items or more, found 3 of 4"):
        split_holdout(TRAIN, AlignmentConfig())


@pytest.mark.parametrize("view", ["items", "profile", "both"])
def test_batch_loss_is_the_objective_of_the_right_rows(view: str) -> None:
    config = AlignmentConfig(batch_size=3, user_view=view, max_history=2, logq=True, item_weight=0.5, temperature=0.05)
    sampler = PairSampler(TRAIN, 4, config)
    batch = next(sampler.batches(np.random.default_rng(2)))
    plan = plan_batch(batch, TRAIN, config)
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    profiles = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(table, dim=1)
    means = torch.stack(
        [unit[TRAIN[user][:cut][-2:]].mean(dim=0) for user, cut in zip(batch.users, batch.cuts, strict=True)]
    )
    views = {"items": [means], "profile": [profiles], "both": [means, profiles]}[view]
    known = torch.from_numpy(batch.known)
    rate = torch.from_numpy(sampler.log_rate)[batch.candidates]
    expected = sum(user_item_loss(u, table[batch.candidates], known, temperature=0.05, log_rate=rate) for u in views)
    left, right = table[batch.pairs[:, 0]], table[batch.pairs[:, 1]]
    pair_rates = torch.from_numpy(sampler.pair_log_rate)
    second = item_item_loss(
        left,
        right,
        torch.from_numpy(batch.pairs_known),
        temperature=0.05,
        log_rates=(pair_rates[batch.pairs[:, 0]], pair_rates[batch.pairs[:, 1]]),
    )
    embeddings = torch.cat([table[plan.items], profiles]) if view != "items" else table[plan.items]
    found = batch_loss(embeddings, plan, batch, sampler, config)
    torch.testing.assert_close(found, expected / len(views) + 0.5 * second)


def test_holdout_takes_last_training_items_out_of_the_training() -> None:
    train = Sequences.from_lists([[i, i + 1, i + 2] for i in range(10)] + [[7]], users=list(range(20, 31)))
    holdout, fitted = split_holdout(train, AlignmentConfig(seed=1))
    assert len(holdout.rows) == 2
    assert fitted.users.tolist() == train.users.tolist()
    for row, (history, target) in enumerate(zip(holdout.histories, holdout.targets, strict=True)):
        assert [*history.tolist(), target] == train[holdout.rows[row]].tolist()
    for row in range(11):
        expected = train[row][:-1] if row in holdout.rows else train[row]
        assert fitted[row].tolist() == expected.tolist()


def test_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(1, 101)]
    np.testing.assert_allclose(factors[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(factors[4:]))
    assert 0 < factors[-1] < 0.01
    assert learning_rate_factor(1, 1) == 1.0


def test_recall_is_that_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(-1, 2, (40, 4)).astype(np.float32)  # many ties, some zero rows
    items = rng.integers(-1, 2, (30, 4)).astype(np.float32)
    targets = rng.integers(30, size=40)
    seen = Sequences.from_lists([rng.choice(30, 3, replace=False) for _ in range(40)])

    def unit(vectors):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    scores = unit(users) @ unit(items).T
    for masked in (None, seen):
        expected = dict.fromkeys((1, 5, 20), 0.0)
        for row in range(40):
            order = np.argsort(-scores[row], kind="stable")
            if masked is not None:
                order = order[~np.isin(order, masked[row])]
            for k in expected:
                expected[k] += (targets[row] in order[:k]) / 40
        found = retrieval_recall(users, items, targets, (1, 5, 20), seen=masked)
        assert found == pytest.approx(expected)


def test_sparse_vectors_rank_like_dense_ones() -> None:
    rng = np.random.default_rng(3)
    users, items = rng.normal(size=(20, 4)), rng.normal(size=(9, 4))
    seen = Sequences.from_lists([rng.choice(9, 2, replace=False) for _ in range(20)])
    dense = retrieval_recall(users, items, np.arange(20) % 9, (1, 4), seen=seen)
    assert retrieval_recall(sparse.csr_array(users), sparse.csr_array(items), np.arange(20) % 9, (1, 4), seen) == dense


def test_recall_in_blocks_is_recall_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    seen = Sequences.from_lists([rng.choice(7, 2, replace=False) for _ in range(10)])
    once = retrieval_recall(users, items, np.arange(10) % 7, (1, 3), seen=seen)
    monkeypatch.setattr("recsys.encoder.alignment.retrieval._BLOCK_CELLS", 21)
    assert retrieval_recall(users, items, np.arange(10) % 7, (1, 3), seen=seen) == once


def test_seen_targets_are_misses() -> None:
    vectors = np.eye(3, dtype=np.float32)
    targets = np.array([0, 1, 2])
    seen = Sequences.from_lists([[0], [], [1]])
    assert retrieval_recall(vectors, vectors, targets, (1, 3), seen=seen) == {
        1: pytest.approx(2 / 3),
        3: pytest.approx(2 / 3),
    }


def test_vectors_that_do_not_fit_are_errors() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match="user vectors have width 3, item vectors 2"):
        retrieval_recall(vectors, vectors[:, :2], np.arange(3), (1,))
    with pytest.raises(DataError, match="found 3 user vectors, 2 targets"):
        retrieval_recall(vectors, vectors, np.arange(2), (1,))
    with pytest.raises(DataError, match="found 3 user vectors, 3 targets, 1 seen histories"):
        retrieval_recall(vectors, vectors, np.arange(3), (1,), seen=Sequences.from_lists([[0]]))
    broken = vectors.copy()
    broken[1, 1] = np.nan
    with pytest.raises(DataError, match="item vectors hold values that are not finite"):
        retrieval_recall(vectors, broken, np.arange(3), (1,))


def test_gap_and_auc_by_hand() -> None:
    users = np.array([[2, 0], [0, 1]], dtype=np.float32)
    items = np.array([[1, 0], [0, 3], [-1, 0]], dtype=np.float32)
    found = alignment_gap(users, items, np.array([0, 0]), np.array([2, 2]))
    assert found.gap == pytest.approx(((1 - -1) + (0 - 0)) / 2)
    assert found.auc == pytest.approx((1 + 0.5) / 2)


def test_mean_of_items_is_of_unit_vectors_and_zero_without_a_past() -> None:
    items = np.array([[2, 0], [0, 5]], dtype=np.float32)
    means = mean_item_vectors(items, Sequences.from_lists([[0, 1], [], [0, 0, 1]]))
    np.testing.assert_allclose(means, [[0.5**0.5, 0.5**0.5], [0, 0], [2 / 5**0.5, 1 / 5**0.5]], atol=1e-6)


def test_bag_of_words_finds_shared_words() -> None:
    users, items = bag_of_words(["lamp red", "the desk"], ["a blue lamp", "the oak desk", "red lamp"])
    assert retrieval_recall(users, items, np.array([2, 1]), (1,)) == {1: 1.0}
