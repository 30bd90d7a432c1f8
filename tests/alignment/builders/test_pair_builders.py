"""Builders of pairs, each on a few rows whose right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.alignment.builders.click_skip import click_skip_pairs
from recsys.alignment.builders.conditioned import conditioned_pairs
from recsys.alignment.builders.feedback import feedback_pairs
from recsys.alignment.builders.perturbed import perturbed_pairs
from recsys.alignment.builders.ratings import rating_pairs
from recsys.alignment.builders.scored import Question, scored_pairs
from recsys.alignment.builders.slates import ObservedSlate
from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.data import Examples, Sequences
from recsys.errors import DataError


def slate(letters: str, **changes: Any) -> ObservedSlate:
    """Items 10, 11, ... with the outcomes whose first letters are given (a for cart)."""
    names = {"b": "buy", "a": "cart", "c": "click", "s": "skip"}
    fields: dict[str, Any] = {
        "slate_id": "x",
        "user_id": "u",
        "history": [1, 2],
        "items": [10 + slot for slot in range(len(letters))],
        "outcomes": [names[letter] for letter in letters],
    }
    return ObservedSlate(**{**fields, **changes})


# --- clicks and skips -------------------------------------------------------------------------------------------------


def compared(pairs: PreferencePairs) -> list[tuple[int | None, list[int]]]:
    return [(pair.chosen_item, list(pair.rejected_items)) for pair in pairs]


def test_a_click_beats_skips_above_it_and_the_next_one() -> None:
    assert compared(click_skip_pairs([slate("sscsss")])) == [(12, [10, 11, 13])]
    assert compared(click_skip_pairs([slate("csss")])) == [(10, [11])]
    assert compared(click_skip_pairs([slate("ssc")])) == [(12, [10, 11])]
    assert compared(click_skip_pairs([slate("cscs")])) == [(10, [11]), (12, [11, 13])]
    assert compared(click_skip_pairs([slate("cc"), slate("ss")])) == []


def test_a_page_that_nobody_went_on_from_says_nothing() -> None:
    assert len(click_skip_pairs([slate("sc", second_page_view=False)])) == 0
    assert len(feedback_pairs([slate("sc", second_page_view=False)])) == 0


def test_clicks_far_down_weigh_more_up_to_a_bound() -> None:
    examined = [1.0, 0.5, 0.01]
    found = click_skip_pairs([slate("scc", examined=examined, propensities=[0.9, 0.3, 0.2])])
    assert found.frame["weight"].to_list() == [2.0, 10.0]
    assert found.frame["propensity"].to_list() == [0.3, 0.2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": [1, 1]}, "an item is shown twice"),
        ({"items": [1]}, "outcomes must be one a slot"),
        ({"examined": [0.0, 1.0]}, r"examined must lie in \(0, 1\]"),
        ({"outcomes": ["click", "like"]}, r"outcomes must be of .* got \['like'\]"),
    ],
)
def test_bad_slates_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slate("cs", **changes)


def test_graded_feedback_is_a_list() -> None:
    (pair,) = feedback_pairs([slate("scsbas")])
    assert pair.chosen_item == 13
    assert pair.chosen_score == 3.0
    assert pair.rejected_items == [14, 11, 10, 12, 15]
    assert pair.rejected_scores == [2.0, 1.0, 0.0, 0.0, 0.0]


def test_the_best_of_a_slate_share_its_weight() -> None:
    found = feedback_pairs([slate("ccs", examined=[1.0, 0.5, 0.2])])
    assert compared(found) == [(10, [12]), (11, [12])]
    assert found.frame["weight"].to_list() == [0.5, 1.0]


# --- ratings ----------------------------------------------------------------------------------------------------------


def log(ratings: Sequence[float | None], user: int = 0, items: Sequence[int] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {"user": [user] * len(ratings), "item": items or list(range(len(ratings))), "rating": ratings},
        schema={"user": pl.Int64, "item": pl.Int64, "rating": pl.Float64},
    )


def test_ratings_with_a_gap_make_pairs_and_prompts_tell_none_of_them() -> None:
    found = list(rating_pairs(log([3, 5, None, 2, 4, 1]), ["a"]))
    assert [(pair.chosen_item, pair.rejected_items, pair.prompt_items) for pair in found] == [
        (0, [5], []),
        (1, [0, 3, 5], []),
        (4, [3, 5], [0, 1, 2]),
    ]
    assert found[1].chosen_score == 5.0
    assert found[1].rejected_scores == [3.0, 2.0, 1.0]


def test_ratings_far_apart_in_time_and_of_other_users_are_not_compared() -> None:
    assert compared(rating_pairs(log([1, 3, 2, 5]), ["a"], window=2)) == [(1, [0]), (3, [2, 1])]
    both = pl.concat([log([5, 5]), log([1, 1], user=1)])
    assert len(rating_pairs(both, ["a", "b"])) == 0


def test_a_repeated_item_is_compared_once_and_never_with_itself() -> None:
    assert compared(rating_pairs(log([1, 5, 1, 1], items=[7, 7, 8, 8]), ["a"])) == [(7, [8])]


def test_a_user_with_many_ratings_gives_a_sample() -> None:
    many = log([5, 1] * 50)
    one, other = (rating_pairs(many, ["a"], max_pairs_per_user=6, max_history=3, seed=seed) for seed in (1, 1))
    assert len(one) == 6
    assert one.frame.equals(other.frame)
    assert one.frame["prompt_items"].list.len().max() == 3
    assert not one.frame.equals(rating_pairs(many, ["a"], max_pairs_per_user=6, max_history=3, seed=2).frame)


def test_a_log_without_ratings_and_a_gap_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="none of 2 interactions has a rating"):
        rating_pairs(log([None, None]), ["a"])
    with pytest.raises(ValueError, match="min_gap must be positive"):
        rating_pairs(log([1, 2]), ["a"], min_gap=0)


# --- judges -----------------------------------------------------------------------------------------------------------


def test_a_judge_labels_items_and_texts() -> None:
    questions = [
        Question(question_id="1", user_id="u", prompt_items=[1], items=[5, 6, 7, 8]),
        Question(question_id="2", user_id="u", prompt_text="Why?", texts=["so", "thus"]),
        Question(question_id="3", user_id="u", items=[5, 6]),
    ]
    scores = [[0.0, 2.0, 1.5, -1.0], [0.0, 3.0], [1.0, 1.0]]
    found = list(scored_pairs(questions, lambda asked: scores, source="simulator", created_by="sim", min_gap=1.0))
    assert [pair.pair_id for pair in found] == ["simulator-1", "simulator-2"]
    assert (found[0].chosen_item, found[0].rejected_items) == (6, [5, 8])
    assert found[0].confidence == pytest.approx(1 / (1 + np.exp(-2)))
    assert (found[1].chosen_text, found[1].rejected_texts) == ("thus", ["so"])


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, float("nan")]]])
def test_a_judge_without_an_answer_is_named(scores: list[list[float]]) -> None:
    question = Question(question_id="q7", user_id="u", items=[5, 6])
    with pytest.raises(DataError, match="question 'q7': the judge must give 2 finite scores"):
        scored_pairs([question], lambda asked: scores, source="judge", created_by="test")


# --- histories --------------------------------------------------------------------------------------------------------

CASES = Examples(
    histories=Sequences.from_lists([[1, 2, 3, 4], [5, 6], [], [7, 7]], users=[2, 1, 0, 0]),
    targets=np.array([9, 8, 7, 6]),
)


def test_a_share_of_the_history_is_replaced() -> None:
    found = list(perturbed_pairs(CASES, ["a", "b", "c"], items=np.arange(10), share=0.5, count=2))
    assert [pair.user_id for pair in found] == ["c", "b", "a"], "an empty history has nothing to replace"
    for pair in found:
        assert pair.rejected_items == [pair.chosen_item] * 2
        for other in pair.rejected_prompts:
            changed = sum(one != two for one, two in zip(pair.prompt_items, other, strict=True))
            assert changed == len(pair.prompt_items) // 2
            assert max(other) < 10


def test_histories_are_swapped_and_reversed() -> None:
    swapped = list(perturbed_pairs(CASES, ["a", "b", "c"], items=np.arange(10), kind="swap"))
    histories = [history.tolist() for history in CASES.histories]
    assert len(swapped) == 4
    for pair in swapped:
        assert pair.rejected_prompts[0] in histories
        assert pair.rejected_prompts[0] != pair.prompt_items
    reversed_ = list(perturbed_pairs(CASES, ["a", "b", "c"], items=np.arange(10), kind="reverse", count=5))
    assert [pair.rejected_prompts for pair in reversed_] == [[[4, 3, 2, 1]], [[6, 5]]]
    with pytest.raises(ValueError, match="share must lie"):
        perturbed_pairs(CASES, ["a", "b", "c"], items=np.arange(10), share=0.0)


# --- reward-conditioned -----------------------------------------------------------------------------------------------


def test_asked_for_the_lower_score_the_answers_swap() -> None:
    pair = PreferencePair(
        pair_id="p",
        user_id="u",
        source="judge",
        created_by="test",
        prompt_text="Why?",
        chosen_text="good",
        rejected_texts=["bad", "worse"],
        chosen_score=0.9,
        rejected_scores=[0.2, 0.1],
        weight=2.0,
    )
    found = list(conditioned_pairs(PreferencePairs.from_rows([pair])))
    assert [(row.prompt_text, row.chosen_text, row.rejected_texts) for row in found] == [
        ("Target score: 0.90\nWhy?", "good", ["bad"]),
        ("Target score: 0.20\nWhy?", "bad", ["good"]),
        ("Target score: 0.90\nWhy?", "good", ["worse"]),
        ("Target score: 0.10\nWhy?", "worse", ["good"]),
    ]
    assert {row.weight for row in found} == {2.0}


def test_conditioning_needs_texts_scores_and_a_whole_template() -> None:
    items = PreferencePair(
        pair_id="p7", user_id="u", source="rating", created_by="t", chosen_item=1, rejected_items=[2]
    )
    with pytest.raises(DataError, match="pair 'p7'"):
        conditioned_pairs(PreferencePairs.from_rows([items]))
    with pytest.raises(ValueError, match="template must hold"):
        conditioned_pairs(PreferencePairs.from_rows([]), template="{prompt}")
