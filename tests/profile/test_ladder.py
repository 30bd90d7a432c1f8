from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from recsys.profile.cases import Case
from recsys.profile.ladder import compare, distinct_2
from recsys.profile.profile import Profile, Statement
from recsys.profile.utility import FloatArray, LengthConfig

CASES = [Case(user=user, compressed=(0,), recent=(1,), candidates=np.array([[2 + user, 20, 21]])) for user in range(12)]


def profile(text: str) -> Profile:
    return Profile(version=1, upto=1, statements=(Statement(text=text, source="template"),))


class MindReader:
    """Ranks the target first if the profile names the user, last if it names another, in the middle without one."""

    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        gains = [0.5 if not text else 1.0 if text == f"user {case.user}" else 0.1 for text in texts]
        return np.log(np.array([[[gain, 0.7, 0.2]] for gain in gains]))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def test_a_ladder_puts_ones_own_profile_above_none_and_anothers_below() -> None:
    own = [profile(f"user {case.user}") for case in CASES]
    report = compare(MindReader(), CASES, {"template": own}, control="template", length=LengthConfig(), seed=0)
    arms = report["arms"]
    assert list(arms) == ["none", "other_user", "template"]
    assert arms["none"]["utility"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert arms["template"]["utility"]["value"] == pytest.approx(np.log(2))
    assert arms["template"]["ndcg@10"]["value"] == 1.0
    assert arms["template"]["ndcg@10_minus_none"]["low"] > 0 > arms["other_user"]["ndcg@10_minus_none"]["high"]
    assert arms["template"]["tokens"] == 2.0
    assert report["users"] == 12


def test_arms_must_answer_all_cases() -> None:
    with pytest.raises(ValueError, match="got 12 cases and template 1"):
        compare(MindReader(), CASES, {"template": [profile("x")]}, control="template", length=LengthConfig(), seed=0)


def test_distinct_2_counts_different_neighbours() -> None:
    assert distinct_2(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["", "a"]) == 0.0
