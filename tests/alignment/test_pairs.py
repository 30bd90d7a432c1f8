"""The table of pairs: it keeps what it is given, and says which column of which row is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.errors import ArtifactError, DataError


def of_items(number: int, **changes: Any) -> PreferencePair:
    fields: dict[str, Any] = {
        "pair_id": f"p{number}",
        "user_id": f"u{number}",
        "source": "rating",
        "created_by": "test",
        "prompt_items": [1, 2],
        "chosen_item": 3,
        "rejected_items": [4, 5],
    }
    return PreferencePair(**{**fields, **changes})


def of_texts(number: int, **changes: Any) -> PreferencePair:
    fields: dict[str, Any] = {
        "pair_id": f"t{number}",
        "user_id": f"u{number}",
        "source": "profile_utility",
        "created_by": "test",
        "prompt_text": "Who is this?",
        "chosen_text": "A reader of westerns.",
        "rejected_texts": ["Somebody."],
    }
    return PreferencePair(**{**fields, **changes})


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    rows = [
        of_items(0, chosen_score=5.0, rejected_scores=[2.0, 1.0], weight=2.5, propensity=0.3, fold="B"),
        of_texts(1, confidence=0.7, label_noise_prob=0.2, objective_id=2, text_len=5),
        of_items(2, rejected_items=[3], rejected_prompts=[[1, 7]], prompt_items=[]),
    ]
    table = PreferencePairs.from_rows(rows)
    table.save(tmp_path / "pairs.parquet")
    found = list(PreferencePairs.load(tmp_path / "pairs.parquet"))
    assert [row.pair_id for row in found] == ["p0", "t1", "p2"]
    assert found[0].rejected_scores == [2.0, 1.0]
    assert found[0].fold == "B"
    assert found[1].chosen_text == "A reader of westerns."
    assert found[1].chosen_item is None
    assert found[2].rejected_prompts == [[1, 7]]
    assert PreferencePairs.from_rows(found).frame.equals(table.frame)


def test_parts_and_joins() -> None:
    table = PreferencePairs.from_rows([of_items(0), of_texts(1), of_items(2)])
    assert len(table.of_items()) == 2
    assert len(table.of_texts()) == 1
    assert [row.pair_id for row in table.select(np.array([2, 0]))] == ["p2", "p0"]
    assert PreferencePairs.concat([table.of_texts(), table.of_items()]).frame["pair_id"].to_list() == ["t1", "p0", "p2"]
    assert len(PreferencePairs.concat([])) == 0
    assert len(PreferencePairs.from_rows([])) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected_items": [4, 3]}, r"column 'rejected_items' holds the chosen item in 1 of 2 rows, e\.g\. row 2"),
        ({"rejected_items": []}, "column 'rejected_items' is empty .* row 2"),
        ({"rejected_items": [4, 4]}, "column 'rejected_items' holds an item twice"),
        ({"rejected_items": [-4]}, "column 'rejected_items' holds a bad index"),
        ({"prompt_items": [-1]}, "column 'prompt_items' holds a bad index"),
        ({"chosen_item": None}, "column 'chosen_item' is null where chosen_text is null too"),
        ({"chosen_text": "both"}, "column 'chosen_text' is given where chosen_item is given too"),
        ({"rejected_texts": ["x"]}, "column 'rejected_texts' is given beside a chosen item"),
        ({"weight": -0.5}, r"column 'weight' is negative in 1 of 2 rows, e\.g\. row 2: -0\.5"),
        ({"weight": math.nan}, "column 'weight' is NaN or infinite .* row 2"),
        ({"confidence": 1.2}, r"column 'confidence' lies outside 0\.\.1"),
        ({"label_noise_prob": -0.1}, r"column 'label_noise_prob' lies outside 0\.\.1"),
        ({"propensity": 0.0}, r"column 'propensity' lies outside 0\.\.1"),
        ({"pair_id": "p0"}, "column 'pair_id' is not unique in 2 of 2 rows"),
        ({"source": "guess"}, "column 'source' is none of click_skip, .* row 2: 'guess'"),
        ({"chosen_score": 1.0}, "column 'chosen_score' needs rejected_scores too"),
        ({"chosen_score": 1.0, "rejected_scores": [1.0]}, "column 'rejected_scores' is not one a rejected answer"),
        (
            {"chosen_score": 1.0, "rejected_scores": [1.0, math.nan]},
            "column 'rejected_scores' holds NaN or infinity",
        ),
        ({"rejected_prompts": [[1]]}, "column 'rejected_prompts' is not one a rejected item"),
        (
            {"rejected_items": [3], "rejected_prompts": [[1, 2]]},
            "column 'rejected_prompts' holds the prompt of the chosen item itself",
        ),
        ({"objective_id": -1}, "column 'objective_id' is negative"),
    ],
)
def test_a_bad_pair_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PreferencePairs.from_rows([of_items(0), of_items(1, **changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected_texts": []}, "column 'rejected_texts' is empty"),
        ({"rejected_texts": ["A reader of westerns."]}, "column 'rejected_texts' holds the chosen text"),
        ({"rejected_texts": ["x", "x"]}, "column 'rejected_texts' holds a text twice"),
        ({"prompt_text": None}, "column 'prompt_text' has no value beside a chosen text"),
        ({"rejected_items": [1]}, "column 'rejected_items' is given beside a chosen text"),
        ({"text_len": -1}, "column 'text_len' is negative"),
    ],
)
def test_a_bad_pair_of_texts_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PreferencePairs.from_rows([of_texts(0, **changes)])


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"chosen_item": 9}, "chosen_item"),
        ({"rejected_items": [4, 9]}, "rejected_items"),
        ({"prompt_items": [9]}, "prompt_items"),
        ({"rejected_items": [3], "rejected_prompts": [[9]]}, "rejected_prompts"),
    ],
)
def test_items_beyond_the_catalogue_are_named(changes: dict[str, Any], column: str) -> None:
    table = PreferencePairs.from_rows([of_items(0, **changes)])
    table.check_items(10)
    with pytest.raises(DataError, match=f"column '{column}' .* beyond 8"):
        table.check_items(9)


def test_other_columns_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'weight'"):
        PreferencePairs(frame=PreferencePairs.from_rows([of_items(0)]).frame.drop("weight"))
    with pytest.raises(ArtifactError, match="cannot read the preference pairs"):
        PreferencePairs.load(tmp_path / "none.parquet")


def test_items_take_other_numbers_and_pairs_of_items_that_are_gone_go() -> None:
    base = {"user_id": "u", "source": "rating", "created_by": "test"}
    table = PreferencePairs.from_rows(
        [
            PreferencePair(
                pair_id="a", prompt_items=[0, 3], chosen_item=1, rejected_items=[3], rejected_prompts=[[3, 0]], **base
            ),
            PreferencePair(pair_id="b", prompt_items=[0], chosen_item=1, rejected_items=[2], **base),
            PreferencePair(pair_id="c", prompt_text="p", chosen_text="x", rejected_texts=["y"], **base),
        ]
    )
    found = list(table.renumber(np.array([0, 1, -1, 2])))
    assert [pair.pair_id for pair in found] == ["a", "c"]
    assert (found[0].prompt_items, found[0].chosen_item, found[0].rejected_items) == ([0, 2], 1, [2])
    assert found[0].rejected_prompts == [[2, 0]]
    assert found[1].chosen_text == "x"
