"""Folds: no user is in two, every user is in one, and items are shared."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.data import Catalog, DataConfig, Dataset, Interactions
from recsys.errors import DataError
from recsys.simulator.experiment.folds import SHARES, check_disjoint, folds_of, split_folds


def _dataset(num_users: int) -> Dataset:
    items = np.arange(num_users * 3) % 5
    return Dataset(
        catalog=Catalog(
            frame=pl.DataFrame(
                {
                    "item_id": [f"i{i}" for i in range(5)],
                    "title": [f"t{i}" for i in range(5)],
                    "categories": [["c"]] * 5,
                }
            )
        ),
        interactions=Interactions(
            frame=pl.DataFrame(
                {
                    "user": np.repeat(np.arange(num_users), 3),
                    "item": items,
                    "event_type": ["view"] * len(items),
                    "rating": pl.Series([None] * len(items), dtype=pl.Float64),
                    "timestamp": np.arange(len(items)),
                    "position": np.tile(np.arange(3), num_users),
                }
            ),
            user_ids=[f"u{user}" for user in range(num_users)],
            num_items=5,
        ),
        name="toy",
        config=DataConfig(source="movielens", name="ml-100k"),
    )


def test_no_user_is_in_two_folds_and_each_keeps_what_it_did() -> None:
    whole = _dataset(500)
    folds = split_folds(whole)
    users = {fold: dataset.interactions.user_ids for fold, dataset in folds.items()}
    check_disjoint(**users)
    assert sorted(user for fold in users.values() for user in fold) == sorted(whole.interactions.user_ids)
    for fold, dataset in folds.items():
        assert len(users[fold]) / 500 == pytest.approx(SHARES[fold] / 10_000, abs=0.05)
        assert dataset.catalog is whole.catalog
        sequences = dataset.interactions.sequences()
        original = whole.interactions.sequences()
        for index, user in enumerate(users[fold]):
            assert sequences[index].tolist() == original[whole.interactions.user_index[user]].tolist()


def test_a_users_fold_depends_on_nobody_else() -> None:
    users = [f"u{user}" for user in range(100)]
    assert folds_of(users[40:41])[0] == folds_of(users)[40]


def test_shared_users_are_named() -> None:
    with pytest.raises(DataError, match=r"simulator and population share 1 users \(b\)"):
        check_disjoint(recommender=["a"], simulator=["b", "c"], population=["d", "b"])


def test_too_few_users_to_split_are_refused() -> None:
    with pytest.raises(DataError, match="has no users; 1 users are too few"):
        split_folds(_dataset(1))
