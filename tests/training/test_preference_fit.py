"""Tuning on pairs: it prefers what it is told to, keeps what was better, and resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from recsys.alignment.builders.beams import beam_negatives, beam_pairs
from recsys.alignment.losses import LOSSES, LossConfig
from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.data import Examples, Sequences
from recsys.errors import ConfigError, DataError
from recsys.generator import GenerativeRecommender, GeneratorConfig, build_model
from recsys.generator.config import ModelConfig
from training.preference_fit import PreferenceFitConfig, PreferenceFitResult, fit_preferences

NUM_ITEMS = 30
SIZES = (4, 8)


def fresh(shape: str = "nested") -> GenerativeRecommender:
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": shape, "hidden_size": 16, "max_history": 4, "dropout": 0.4})
    )
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, SIZES, None, build_model(config, codes, SIZES, None))


def successors(count: int = 40, **changes: Any) -> PreferencePairs:
    """After item i comes i + 1, not what stands 9 or 17 further on."""
    rows = []
    for number in range(count):
        item = number % NUM_ITEMS
        fields: dict[str, Any] = {
            "pair_id": str(number),
            "user_id": "u",
            "source": "rating",
            "created_by": "test",
            "prompt_items": [(item - 1) % NUM_ITEMS, item][number % 2 :],
            "chosen_item": (item + 1) % NUM_ITEMS,
            "rejected_items": [(item + step) % NUM_ITEMS for step in (10, 18)[: 1 + number % 2]],
            "chosen_score": 2.0,
            "rejected_scores": [1.0, 0.0][: 1 + number % 2],
            "label_noise_prob": 0.1,
        }
        rows.append(PreferencePair(**{**fields, **changes}))
    return PreferencePairs.from_rows(rows)


class Scalars:
    """What was logged, by tag."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def __call__(self, tag: str, value: float, step: int) -> None:
        self.values.setdefault(tag, []).append(value)


def rising() -> Callable[[], float]:
    values = iter(range(1000))
    return lambda: float(next(values))


def settings(**changes: Any) -> PreferenceFitConfig:
    values: dict[str, Any] = {"epochs": 4, "batch_pairs": 8, "learning_rate": 3e-3, "negatives": "table"}
    return PreferenceFitConfig.model_validate({**values, **changes})


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_raises_the_chosen_over_the_rejected(name: str) -> None:
    recommender, log = fresh(), Scalars()
    fit_preferences(
        recommender,
        successors(),
        settings(loss={"name": name, "beta": 1.0}),
        seed=0,
        validate=rising(),
        log=log,
    )
    assert log.values["preference/margin"][0] == pytest.approx(0, abs=1e-6)
    assert log.values["preference/margin"][-1] > 0.2
    assert log.values["preference/accuracy"][-1] > 0.7


@pytest.mark.parametrize(("shape", "stop_share"), [("nested", 0.6), ("flat", 0.2)])
def test_hard_negatives_are_searched_anew_until_the_chosen_come_first(shape: str, stop_share: float) -> None:
    recommender, log, pairs = fresh(shape), Scalars(), successors()
    config = settings(
        loss={"name": "sdpo", "beta": 1.0, "sft_weight": 0.2},
        negatives="beam",
        epochs=25,
        learning_rate=1e-2,
        patience=99,
        stop_share=stop_share,
    )
    result = fit_preferences(recommender, pairs, config, seed=0, validate=rising(), log=log)
    shares = log.values["preference/first_share"]
    assert shares[0] < stop_share <= shares[-1]
    assert len(shares) < 25, "no search goes on after the last step"
    assert result.curve[-1]["steps"] == 5 * (len(shares) - 1)
    histories = Sequences.from_lists(pairs.frame["prompt_items"].to_list())
    found = beam_negatives(recommender, histories, pairs.frame["chosen_item"].to_numpy(), count=3, beams=5)
    assert found.first_share == pytest.approx(shares[-1])


def test_random_negatives_are_none_of_the_chosen_and_none_twice() -> None:
    recommender, log = fresh(), Scalars()
    config = settings(negatives="random", num_negatives=8, epochs=8)
    fit_preferences(recommender, successors(), config, seed=0, validate=rising(), log=log)
    assert log.values["preference/accuracy"][-1] > 0.8
    # More of them than there are other items: all of them, once each.
    config = settings(negatives="random", num_negatives=99, epochs=1)
    fit_preferences(fresh(), successors(), config, seed=0, validate=rising())


def test_what_was_better_before_is_kept() -> None:
    recommender = fresh()
    before = {name: value.clone() for name, value in recommender.model.state_dict().items()}
    scores = iter([0.5, 0.4, 0.45, 0.1, 0.1])
    result = fit_preferences(recommender, successors(), settings(), seed=0, validate=lambda: next(scores))
    assert result == PreferenceFitResult(curve=result.curve, start=0.5, best_epoch=0)
    for name, value in recommender.model.state_dict().items():
        assert torch.equal(value, before[name]), name


class KilledError(Exception):
    pass


@pytest.mark.parametrize("negatives", ["table", "beam"])
def test_a_killed_fit_resumes_to_the_very_same_weights(negatives: str, tmp_path: Path) -> None:
    config = settings(negatives=negatives, loss={"name": "bco", "beta": 1.0})

    def run(directory: Path, kill_after: int | None) -> GenerativeRecommender:
        recommender, calls = fresh(), 0

        def validate() -> float:
            nonlocal calls
            if calls == kill_after:
                raise KilledError
            calls += 1
            return 0.5

        fit_preferences(recommender, successors(), config, seed=3, validate=validate, checkpoint_dir=directory)
        return recommender

    scores = run(tmp_path / "whole", None)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", 3)
    resumed = run(tmp_path / "killed", None)
    for name, value in scores.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for curve in ("whole", "killed"):
        assert len(list((tmp_path / curve).glob("checkpoint-*"))) == 1
    one, other = (load_file(next((tmp_path / name).glob("checkpoint-*/*.safetensors"))) for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_histories_can_be_what_is_compared() -> None:
    """The same item after a perturbed history: the true history comes to make it likelier than the false one does."""
    rows = [
        PreferencePair(
            pair_id=str(item),
            user_id="u",
            source="perturbed_history",
            created_by="test",
            prompt_items=[item],
            chosen_item=(item + 1) % NUM_ITEMS,
            rejected_items=[(item + 1) % NUM_ITEMS],
            rejected_prompts=[[(item + 5) % NUM_ITEMS] * 9],
        )
        for item in range(NUM_ITEMS)
    ]
    log = Scalars()
    config = settings(epochs=10, loss={"name": "dpo", "beta": 1.0})
    fit_preferences(fresh(), PreferencePairs.from_rows(rows), config, seed=0, validate=rising(), log=log)
    assert log.values["preference/accuracy"][-1] > 0.8


def test_a_pair_without_weight_is_not_learned() -> None:
    whole = successors()
    weights = np.where(np.arange(len(whole)) % 2, 1.0, 0.0)
    half = PreferencePairs.from_rows(
        [PreferencePair(**{**vars(row), "weight": weight}) for row, weight in zip(whole, weights, strict=True)]
    )
    results = [
        fit_preferences(fresh(), pairs, settings(epochs=1), seed=0, validate=rising()) for pairs in (whole, half)
    ]
    assert [result.curve[0]["steps"] for result in results] == [5, 3]


def test_beam_pairs_are_the_best_wrong_items() -> None:
    recommender = fresh()
    cases = Examples(histories=Sequences.from_lists([[1, 2], [3]], users=[1, 0]), targets=np.array([4, 5]))
    table = beam_pairs(recommender, cases, ["a", "b"], count=3, beams=10, created_by="test", mask_seen=True)
    exact = recommender.recommend(cases.histories, NUM_ITEMS, beams=NUM_ITEMS)
    for row, history, items in zip(table, [[1, 2], [3]], exact.items.tolist(), strict=True):
        assert row.prompt_items == history
        assert row.rejected_items == [item for item in items if item not in (row.chosen_item, *history)][:3]
    assert table.frame["user_id"].to_list() == ["b", "a"]


def test_what_cannot_be_tuned_on_is_named() -> None:
    def fit(pairs: PreferencePairs, config: PreferenceFitConfig, recommender: GenerativeRecommender) -> None:
        fit_preferences(recommender, pairs, config, seed=0, validate=rising())

    with pytest.raises(DataError, match="none of 0 pairs is one of items"):
        fit(PreferencePairs.from_rows([]), settings(), fresh())
    with pytest.raises(DataError, match="column 'chosen_item' is beyond 29"):
        fit(successors(1, chosen_item=30), settings(), fresh())
    with pytest.raises(DataError, match="column 'weight' is 0 in all rows"):
        fit(successors(1, weight=0.0), settings(), fresh())
    ungraded = successors(1, chosen_score=None, rejected_scores=[])
    with pytest.raises(DataError, match="column 'chosen_score' has no value in 1 of 1 rows"):
        fit(ungraded, settings(loss={"name": "lipo"}), fresh())
    with pytest.raises(DataError, match="column 'label_noise_prob' is 0 in all rows"):
        fit(successors(1, label_noise_prob=0.0), settings(loss={"name": "cream"}), fresh())
    with pytest.raises(ConfigError, match="any_order"):
        fit(successors(1), settings(), fresh("any_order"))
    with pytest.raises(ValidationError, match=r"loss\.name=lipo reads what .* set negatives: table"):
        PreferenceFitConfig(negatives="beam", loss=LossConfig(name="lipo"))
