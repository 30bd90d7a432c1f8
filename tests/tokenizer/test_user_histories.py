"""Users named by their histories: the checks of the method on planted tastes; names need nothing but a history."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from recsys.data import Sequences
from recsys.errors import ArtifactError, DataError
from recsys.tokenizer import SemanticIds
from recsys.tokenizer.user_config import UserIndexerConfig
from recsys.tokenizer.user_histories import HistoryIndexer, user_report

CONFIG = UserIndexerConfig(levels=3, codebook_size=16, code_dim=8, hidden=(32,), warmup_steps=60, steps=140)
NUM_ITEMS, NUM_TASTES = 120, 24


def make_vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    tastes = rng.normal(size=(NUM_TASTES, 16))[np.arange(NUM_ITEMS) % NUM_TASTES]
    return (tastes + 0.2 * rng.normal(size=(NUM_ITEMS, 16))).astype(np.float32)


def make_train() -> Sequences:
    """300 users, each of one taste but for one item, and one without any."""
    rng = np.random.default_rng(1)
    own = [np.flatnonzero(np.arange(NUM_ITEMS) % NUM_TASTES == user % NUM_TASTES) for user in range(300)]
    walks = [np.append(rng.permutation(items)[: rng.integers(3, 6)], rng.integers(NUM_ITEMS)) for items in own]
    return Sequences.from_lists([*walks, []])


@pytest.fixture(scope="module")
def fitted() -> tuple[HistoryIndexer, SemanticIds]:
    return HistoryIndexer.fit(CONFIG, make_vectors(), make_train())


def test_codes_are_used_and_new_users_do_not_collapse(fitted: tuple[HistoryIndexer, SemanticIds]) -> None:
    indexer, ids = fitted
    report = user_report(ids, indexer, make_train())
    assert report["num_users"] == 300
    assert report["unique"]["dup_rate"] <= 0.01
    assert min(report["nearest"]["perplexity"]) >= 0.4 * 16
    assert report["short"]["kept"] >= 0.5


def test_users_of_one_code_had_the_same_things(fitted: tuple[HistoryIndexer, SemanticIds]) -> None:
    def jaccard(codes: np.ndarray) -> float:
        same = np.argwhere(np.triu((codes[:, None, :2] == codes[None, :, :2]).all(axis=2), 1))
        return float(np.mean([len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in same]))

    sets = [set(items.tolist()) for items in make_train()][:300]
    codes = fitted[1].raw_codes
    assert jaccard(codes) >= 3 * jaccard(np.random.default_rng(0).permutation(codes))


def test_a_history_has_the_same_codes_whoever_it_belongs_to(fitted: tuple[HistoryIndexer, SemanticIds]) -> None:
    indexer, ids = fitted
    train = make_train()
    codes = indexer.encode(train)
    np.testing.assert_array_equal(codes[:300], ids.raw_codes)
    np.testing.assert_array_equal(codes[300], [-1, -1, -1])
    np.testing.assert_array_equal(indexer.encode(Sequences.from_lists([train[17]], users=[999])), codes[17:18])


def test_a_new_item_speaks_through_its_content(fitted: tuple[HistoryIndexer, SemanticIds]) -> None:
    indexer, _ = fitted
    vectors = make_vectors()
    # The new catalogue: the items in reverse order, without the last one, and a copy of item 0 that nobody had.
    known = np.arange(NUM_ITEMS)[::-1] - 1
    order = np.argsort(known)[1:]
    grown = indexer.with_items(np.concatenate([vectors[order], vectors[:1]]), known)
    old, new = Sequences.from_lists([[3, 27, 51]]), Sequences.from_lists([known[[3, 27, 51]]])
    np.testing.assert_array_equal(grown.encode(new), indexer.encode(old))
    assert (grown.encode(Sequences.from_lists([[NUM_ITEMS - 1]])) >= 0).all()


def test_saved_and_loaded_names_agree(fitted: tuple[HistoryIndexer, SemanticIds], tmp_path: Path) -> None:
    indexer, _ = fitted
    indexer.save(tmp_path / "users")
    loaded = HistoryIndexer.load(tmp_path / "users", make_vectors())
    np.testing.assert_array_equal(loaded.encode(make_train()), indexer.encode(make_train()))
    with pytest.raises(ArtifactError, match="of 120 items, the catalogue has 100"):
        HistoryIndexer.load(tmp_path / "users", make_vectors()[:100])
    shutil.rmtree(tmp_path / "users" / "indexer")
    with pytest.raises(ArtifactError, match="fit it again"):
        HistoryIndexer.load(tmp_path / "users", make_vectors())


def test_items_of_no_catalogue_are_refused(fitted: tuple[HistoryIndexer, SemanticIds]) -> None:
    with pytest.raises(DataError, match=r"0\.\.119, found 120"):
        fitted[0].encode(Sequences.from_lists([[120]]))
