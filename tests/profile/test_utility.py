from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from recsys.profile.cases import Case
from recsys.profile.utility import FloatArray, LengthConfig, ndcg_at_10, score, with_length

CASE = Case(user=7, compressed=(0, 1), recent=(2,), candidates=np.array([[3, 4, 5], [6, 4, 5]]))


class FixedJudge:
    """Probabilities of the three candidates by text."""

    def __init__(self, table: dict[str, list[list[float]]]) -> None:
        self._table = table

    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        return np.log(np.array([self._table[text] for text in texts]))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


JUDGE = FixedJudge(
    {
        "": [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]],
        "good": [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]],
        "bad " * 3: [[0.125, 0.5, 0.375], [0.25, 0.5, 0.25]],
    }
)


def test_utility_is_the_mean_gain_in_log_probability_of_what_came_next() -> None:
    good, bad, none = score(
        JUDGE, CASE, ["good", "bad " * 3, ""], [True, False, True], LengthConfig(free_tokens=2, weight=0.1)
    )
    assert good.utility == pytest.approx(np.log(2) / 2)
    assert good.reward == good.utility
    assert bad.utility == pytest.approx(-np.log(2))
    assert (bad.tokens, bad.reward) == (3, pytest.approx(-np.log(2) - 0.05))
    assert (none.utility, none.reward, none.tokens) == (0.0, 0.0, 0)
    assert [each.is_faithful for each in (good, bad, none)] == [True, False, True]
    assert {each.user for each in (good, bad, none)} == {7}
    assert good.ndcg == 1.0
    assert bad.ndcg == pytest.approx((1 / np.log2(4) + 1 / np.log2(4)) / 2)


def test_length_is_free_up_to_a_point() -> None:
    assert with_length(0.3, 200, LengthConfig()) == 0.3
    assert with_length(0.3, 300, LengthConfig()) == pytest.approx(0.25)


def test_ranks_beyond_ten_and_ties_give_nothing() -> None:
    target, others = np.array([0.0]), np.arange(1.0, 20.0)
    assert ndcg_at_10(np.concatenate([target, others])[None, None])[0] == 0.0
    assert ndcg_at_10(np.zeros((1, 1, 20)))[0] == 0.0
    assert ndcg_at_10(np.concatenate([[5.5], others])[None, None])[0] == 0.0
    assert ndcg_at_10(np.concatenate([[18.5], others])[None, None])[0] == pytest.approx(1 / np.log2(3))


def test_equal_texts_are_judged_once_and_worth_the_same() -> None:
    asked: list[list[str]] = []

    class Watched(FixedJudge):
        def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
            asked.append(list(texts))
            return super().log_probs(case, texts)

    judge = Watched({"": [[0.25, 0.5, 0.25]] * 2, "good": [[0.5, 0.25, 0.25]] * 2})
    scored = score(judge, CASE, ["", "good", "", "good"], [True] * 4, LengthConfig())
    assert asked == [["", "good"]]
    assert [each.utility for each in scored] == [0.0, pytest.approx(np.log(2)), 0.0, pytest.approx(np.log(2))]
    assert [each.ndcg for each in scored] == [scored[0].ndcg, 1.0, scored[0].ndcg, 1.0]
