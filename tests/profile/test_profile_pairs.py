from __future__ import annotations

import pytest

from recsys.profile.pairs import PairConfig, text_pairs
from recsys.profile.utility import Scored


def scored(user: int, text: str, reward: float, *, is_faithful: bool = True) -> Scored:
    return Scored(user=user, text=text, utility=reward, reward=reward, tokens=1, is_faithful=is_faithful, ndcg=0.0)


def test_pairs_need_a_gap_above_half_a_deviation_of_the_user() -> None:
    profiles = [scored(1, "a", 0.0), scored(1, "b", 0.2), scored(1, "c", 1.0)]  # deviation .432
    pairs = text_pairs(profiles, {1: "ask"}, PairConfig())
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("c", "a"), ("c", "b")]
    assert pairs[0].gap == pytest.approx(1.0)
    assert {pair.prompt for pair in pairs} == {"ask"}


def test_pairs_need_a_gap_above_the_absolute_minimum() -> None:
    assert text_pairs([scored(1, "a", 0.0), scored(1, "b", 0.049)], {1: "ask"}, PairConfig()) == []
    assert len(text_pairs([scored(1, "a", 0.0), scored(1, "b", 0.06)], {1: "ask"}, PairConfig())) == 1


def test_what_is_unfaithful_is_never_chosen_and_may_be_rejected() -> None:
    profiles = [scored(1, "made up", 5.0, is_faithful=False), scored(1, "true", 1.0)]
    assert text_pairs(profiles, {1: "ask"}, PairConfig()) == []
    profiles = [scored(1, "made up", 0.0, is_faithful=False), scored(1, "true", 1.0)]
    assert [pair.chosen for pair in text_pairs(profiles, {1: "ask"}, PairConfig())] == ["true"]


def test_a_user_gives_a_limited_number_and_no_pair_with_another_user() -> None:
    profiles = [scored(user, f"{user}{reward}", reward) for user in (1, 2) for reward in (0, 1, 2, 3, 4)]
    pairs = text_pairs(profiles, {1: "one", 2: "two"}, PairConfig())
    assert [pair.user for pair in pairs] == [1] * 4 + [2] * 4
    assert all(pair.chosen[0] == pair.rejected[0] == str(pair.user) for pair in pairs)
    assert pairs[0].gap == 4


def test_empty_and_equal_texts_give_no_pair() -> None:
    assert text_pairs([scored(1, "", 0.0), scored(1, "a", 9.0), scored(1, "a", 9.0)], {1: "ask"}, PairConfig()) == []
