from __future__ import annotations

import numpy as np
import pytest

from recsys.data.sequences import Sequences
from recsys.errors import DataError
from recsys.profile.cases import CaseConfig, make_cases

CONFIG = CaseConfig(targets=2, recent=2, min_compressed=3, negatives=5)
HISTORIES = Sequences.from_lists(
    [range(10), range(6), [0, 1, 2, 3, 4, 5, 1, 9], [9, 8, 7, 6, 5, 4, 3]], users=[3, 4, 5, 6]
)
COUNTS = np.ones(30, dtype=np.int64)


def test_a_history_is_divided_into_what_is_told_what_is_read_and_what_is_asked() -> None:
    case = make_cases(HISTORIES, COUNTS, CONFIG)[0]
    assert case.user == 3
    assert case.compressed == (0, 1, 2, 3, 4, 5)
    assert case.recent == (6, 7)
    assert case.targets == (8, 9)


def test_no_target_is_told_or_read() -> None:
    # LettinGo check L2, by item: also where a user chooses an item again.
    cases = make_cases(HISTORIES, COUNTS, CONFIG)
    assert [case.user for case in cases] == [3, 5, 6]  # user 4 has too few
    for case in cases:
        assert not set(case.targets) & {*case.compressed, *case.recent}
    assert cases[1].targets == (9,)


def test_targets_are_ranked_among_items_that_the_user_never_had() -> None:
    for case in make_cases(HISTORIES, COUNTS, CONFIG):
        row = HISTORIES.users.tolist().index(case.user)
        assert case.candidates.shape[1] == 6
        for drawn in case.candidates[:, 1:]:
            assert len(set(drawn.tolist())) == 5
            assert not set(drawn.tolist()) & set(HISTORIES[row].tolist())


def test_draws_follow_popularity_and_depend_on_the_user_alone() -> None:
    counts = np.where(np.arange(30) < 16, 1, 0)  # items from 16 on are never chosen
    cases = make_cases(HISTORIES, counts, CONFIG)
    assert max(int(case.candidates.max()) for case in cases) < 16
    alone = make_cases(HISTORIES.select(np.array([3])), counts, CONFIG)[0]
    np.testing.assert_array_equal(alone.candidates, cases[-1].candidates)


def test_a_catalogue_that_is_too_small_is_refused() -> None:
    with pytest.raises(DataError, match=r"profiles\.cases\.negatives=5: only 2 items are left"):
        make_cases(HISTORIES, np.ones(12, dtype=np.int64), CONFIG)
