from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.simulator.behaviour.folds import UserFolds


def test_recommender_simulator_and_evaluation_share_no_user_and_leave_none_out() -> None:
    user_ids = [f"user {number}" for number in range(2000)]
    folds = UserFolds.of(user_ids)
    together = np.concatenate([folds.recommender, folds.simulator, folds.evaluation])
    assert sorted(together.tolist()) == list(range(2000))
    shares = np.array([len(folds.recommender), len(folds.simulator), len(folds.evaluation)]) / 2000
    assert np.abs(shares - [0.6, 0.2, 0.2]).max() < 0.03


def test_a_user_stays_in_its_fold_whoever_else_there_is() -> None:
    user_ids = [f"user {number}" for number in range(300)]
    every = UserFolds.of(user_ids)
    some = UserFolds.of(user_ids[100:])
    for fold in ("recommender", "simulator", "evaluation"):
        rows = getattr(every, fold)
        assert {user_ids[row] for row in rows if row >= 100} == {user_ids[100 + row] for row in getattr(some, fold)}


def test_too_few_users_are_refused_with_the_fold_that_is_empty() -> None:
    with pytest.raises(DataError, match="none of 1 users falls into the"):
        UserFolds.of(["alone"])
