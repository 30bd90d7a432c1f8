"""Places of training sequences."""

from __future__ import annotations

import numpy as np

from recsys.alignment.builders.cases import sample_cases
from recsys.data import Sequences

TRAIN = Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8]], users=[7, 8, 9])


def test_every_place_with_enough_before_it_is_a_case() -> None:
    found = sample_cases(TRAIN, 99, max_history=2, seed=0)
    assert [history.tolist() for history in found.histories] == [[1], [1, 2], [5], [5, 6], [6, 7]]
    assert found.targets.tolist() == [2, 3, 6, 7, 8]
    assert found.histories.users.tolist() == [7, 7, 9, 9, 9]
    assert len(sample_cases(TRAIN, 99, max_history=2, seed=0, min_history=3)) == 1


def test_a_sample_is_the_same_under_the_same_seed() -> None:
    one, other = (sample_cases(TRAIN, 3, max_history=2, seed=4) for _ in range(2))
    assert len(one) == 3
    assert np.array_equal(one.targets, other.targets)
