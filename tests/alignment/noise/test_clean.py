"""Filters of a run: each on the pairs it can judge, each objective by itself, with counts that add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from random_codes import random_codes

from recsys.alignment.candidates import policy_model
from recsys.alignment.noise.answers import Answers, generator_scores, pair_features, ranker
from recsys.alignment.noise.clean import clean
from recsys.alignment.noise.config import FilterConfig, FilterInputs
from recsys.alignment.noise.peer_review import PeerReviewConfig, PeerReviewFilter
from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.data import IntArray, Sequences
from recsys.errors import DataError
from recsys.generator import GeneratorConfig, build_model
from recsys.generator.config import ModelConfig

NUM_ITEMS = 40
VECTORS = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)


def pair(number: int, **changes: Any) -> PreferencePair:
    fields: dict[str, Any] = {
        "pair_id": str(number),
        "user_id": "u",
        "source": "beam",
        "created_by": "test",
        "prompt_items": [3, 4],
        "chosen_item": 1,
        "rejected_items": [2, 5],
    }
    return PreferencePair(**{**fields, **changes})


def table(*rows: PreferencePair) -> PreferencePairs:
    return PreferencePairs.from_rows(rows)


def inputs(**changes: Any) -> FilterInputs:
    def by_number(histories: Sequences, items: IntArray) -> np.ndarray[Any, Any]:
        return items.astype(np.float32)

    fields: dict[str, Any] = {
        "item_vectors": lambda: VECTORS,
        "generator": lambda: by_number,
        "counter": lambda: by_number,
        "seed": 0,
    }
    return FilterInputs(**{**fields, **changes})


def filters(*values: dict[str, Any]) -> list[FilterConfig]:
    adapter: TypeAdapter[FilterConfig] = TypeAdapter(FilterConfig)
    return [adapter.validate_python(value) for value in values]


def test_a_filter_leaves_alone_what_it_cannot_judge_and_keeps_the_order() -> None:
    unsure = {"source": "novelty", "objective_id": 1, "confidence": 0.5}
    pairs = table(pair(0, confidence=0.1), pair(1, **unsure), pair(2, **{**unsure, "confidence": 0.9}), pair(3))
    left, report = clean(pairs, filters({"kind": "confidence"}), inputs())
    assert left.frame["pair_id"].to_list() == ["0", "2", "3"]
    assert report == [{"kind": "confidence", "judged": 2, "dropped": 1, "relabelled": 0, "pairs": 3}]
    assert clean(pairs, [], inputs()) == (pairs, [])


def test_filters_follow_each_other_and_each_objective_is_judged_by_itself() -> None:
    about = {"source": "novelty", "objective_id": 1}
    # The two rankers agree on what is about accuracy and contradict each other on what is about novelty.
    pairs = table(pair(0), pair(1), *(pair(number, **about, prompt_items=[9]) for number in (2, 3)))

    def turned(histories: Sequences, items: IntArray) -> np.ndarray[Any, Any]:
        return np.where(histories.lengths == 1, -1, 1).astype(np.float32) * items

    left, report = clean(
        pairs,
        filters({"kind": "consistency"}, {"kind": "confidence", "action": "smooth", "threshold": 0.9}),
        inputs(counter=lambda: turned),
    )
    assert left.frame["label_noise_prob"].to_list() == [0.0, 0.0, 1.0, 1.0]
    assert [(entry["judged"], entry["relabelled"]) for entry in report] == [(4, 2), (2, 0)]


def test_pairs_about_objectives_of_ones_own_are_judged_too() -> None:
    pairs = table(*(pair(number, objective_id=7) for number in (0, 1)), pair(2, objective_id=0), pair(3))
    left, report = clean(pairs, filters({"kind": "consistency"}), inputs())
    assert left.frame["pair_id"].to_list() == ["0", "1", "2", "3"]
    assert (report[0]["judged"], report[0]["dropped"]) == (4, 0)
    with pytest.raises(DataError, match="judges pairs about objective 7, of which there are only 1"):
        clean(table(pair(0, objective_id=7), pair(1), pair(2)), filters({"kind": "consistency"}), inputs())


def test_what_people_decided_twice_tells_how_often_they_err() -> None:
    rows = []
    for number in range(40):
        answers = (6, 7) if number % 4 else (7, 6)
        rows.append(pair(number, source="rating", chosen_item=answers[0], rejected_items=[answers[1]]))
    left, report = clean(table(*rows, pair(99)), filters({"kind": "flip_rate", "min_decisions": 10}), inputs())
    rates = left.frame["label_noise_prob"].to_list()
    assert report[0]["judged"] == report[0]["relabelled"] == 40
    assert rates[-1] == 0
    # 10 against 30: two decisions differ at a rate of 2 * 30 * 10 / (40 * 39).
    assert rates[0] == pytest.approx((1 - np.sqrt(1 - 2 * 600 / 1560)) / 2)


def test_what_a_filter_cannot_do_is_named() -> None:
    unsure = {"source": "novelty", "objective_id": 1, "confidence": 0.5}
    with pytest.raises(DataError, match=r"pairs\.filters\[0\]: confidence judges pairs of novelty, and there are none"):
        clean(table(pair(0)), filters({"kind": "confidence"}), inputs())
    with pytest.raises(DataError, match=r"filters\[0\]: confidence leaves none of 2 pairs; make it milder"):
        clean(table(pair(0, **unsure), pair(1, **unsure)), filters({"kind": "confidence"}), inputs())
    with pytest.raises(DataError, match=r"peer_review judges pairs about novelty, of which there are only 1"):
        clean(table(pair(0), pair(1), pair(2, **unsure)), filters({"kind": "peer_review"}), inputs())


def test_answers_keep_their_own_histories() -> None:
    perturbed = pair(1, source="perturbed_history", rejected_items=[1], rejected_prompts=[[8]])
    answers = Answers.of(table(pair(0), perturbed))
    assert [history.tolist() for history in answers.histories] == [[3, 4], [3, 4], [3, 4], [3, 4], [8]]
    assert answers.items.tolist() == [1, 2, 5, 1, 1]
    assert answers.begins.tolist() == [0, 3, 5]


def test_the_generators_scores_are_its_log_probabilities() -> None:
    config = GeneratorConfig(model=ModelConfig(hidden_size=16, max_history=3, num_layers=1))
    torch.manual_seed(0)
    codes = random_codes(NUM_ITEMS, (6, 8))
    model = policy_model(build_model(config, codes, (6, 8), None).eval())
    rows = [pair(0, prompt_items=[9, 8, 7, 6, 5]), pair(1, prompt_items=[], rejected_items=[2])]
    found = ranker(generator_scores(model, batch_size=2))(table(*rows))
    with torch.no_grad():
        for row, scores in zip(rows, found, strict=True):
            recent = list(row.prompt_items)[-3:]
            for item, score in zip([row.chosen_item, *row.rejected_items], scores, strict=True):
                expected = model.target_log_probs(
                    torch.tensor([[*recent, item]]), torch.tensor([len(recent) + 1]), torch.tensor([len(recent)])
                )
                assert score == pytest.approx(expected.item(), abs=1e-5)


def test_reviewers_find_flipped_pairs_by_what_items_are() -> None:
    """Users like what resembles their history; a quarter of the labels is turned over."""
    random = np.random.default_rng(0)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    rows, flipped = [], random.random(600) < 0.25
    for number in range(600):
        history, (one, other) = random.integers(NUM_ITEMS), random.choice(NUM_ITEMS, 2, replace=False)
        closer = unit[history] @ unit[one] > unit[history] @ unit[other]
        better, worse = (one, other) if closer != flipped[number] else (other, one)
        rows.append(pair(number, prompt_items=[int(history)], chosen_item=int(better), rejected_items=[int(worse)]))
    kept = PeerReviewFilter(features=pair_features(unit), config=PeerReviewConfig(noise=0.25))(table(*rows))
    left = np.zeros(600, dtype=bool)
    left[kept.frame["pair_id"].cast(int).to_numpy()] = True
    assert (~left).sum() == 150
    assert (flipped & ~left).sum() / flipped.sum() > 0.7
