from __future__ import annotations

import numpy as np
import pytest

from recsys.data.sequences import Sequences
from recsys.evaluation.baselines.ranking import rank_by_score


def test_best_first_and_equal_scores_by_item_index() -> None:
    scores = np.array([[0.5, -1.0, 0.5, 2.0], [-0.0, 0.0, -1e-30, 1e-30]], dtype=np.float32)
    assert rank_by_score(scores, 4).tolist() == [[3, 0, 2, 1], [3, 0, 1, 2]]
    assert rank_by_score(scores, 2).tolist() == [[3, 0], [3, 0]]


@pytest.mark.parametrize("k", [1, 5, 50, 60])
def test_equals_a_stable_full_sort_on_scores_full_of_ties(k: int) -> None:
    scores = np.random.default_rng(0).integers(-3, 4, size=(40, 50)).astype(np.float32) / np.float32(7)
    expected = np.full((40, k), -1)
    expected[:, : min(k, 50)] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rank_by_score(scores, k), expected)


def test_seen_items_are_left_out_and_the_scores_are_not_changed() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], dtype=np.float32)
    ranked = rank_by_score(scores, 3, seen=Sequences.from_lists([[0, 2, 0], []]))
    assert ranked.tolist() == [[1, -1, -1], [0, 1, 2]]
    assert scores.max() == 3


def test_minus_infinity_is_never_recommended() -> None:
    assert rank_by_score(np.array([[-np.inf, -5.0]], dtype=np.float32), 2).tolist() == [[1, -1]]
