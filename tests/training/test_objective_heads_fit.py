"""Heads that are tuned each on its own objective: each learns its own, and the dial between them does what it says."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from recsys.alignment.builders.beams import beam_pairs
from recsys.alignment.builders.cases import sample_cases
from recsys.alignment.builders.novelty import novelty_pairs
from recsys.alignment.candidates import head_log_probs, policy_model
from recsys.alignment.pairs import PreferencePairs
from recsys.data import Examples, IntArray, Sequences
from recsys.data.windows import pad_right
from recsys.errors import ConfigError, DataError
from recsys.evaluation.metrics import accuracy_metrics
from recsys.generator import GenerativeRecommender, GeneratorConfig, build_model
from recsys.generator.config import ModelConfig
from training.fit import FitConfig, fit_generator
from training.preference_fit import PreferenceFitConfig, fit_preferences

GROUPS, SIZES = 12, (4, 9)
NUM_ITEMS = 3 * GROUPS
USERS = [f"u{number}" for number in range(100)]


def world() -> Sequences:
    """Group g is followed by g + 1; of its three items one is taken by most, one by some and one by few."""
    random = np.random.default_rng(0)
    rows = []
    for _ in USERS:
        groups = (random.integers(GROUPS) + np.arange(6)) % GROUPS
        rows.append((3 * groups + random.choice(3, 6, p=[0.7, 0.2, 0.1])).tolist())
    return Sequences.from_lists(rows, users=list(range(len(USERS))))


def popularity() -> IntArray:
    return np.bincount(world().items, minlength=NUM_ITEMS)


@cache
def trained() -> GenerativeRecommender:
    """Copy it before tuning."""
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    config = GeneratorConfig(
        model=ModelConfig(hidden_size=16, max_history=4, dropout=0.0, num_layers=1), new_item_slots=0, beams=20
    )
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, None)
    fit = FitConfig(epochs=8, batch_positions=256, learning_rate=1e-2, validate_every=8)
    fit_generator(model, world(), fit, seed=0, validate=lambda: 1.0)
    return GenerativeRecommender(config, codes, SIZES, None, model)


@cache
def tables() -> tuple[PreferencePairs, PreferencePairs]:
    cases = sample_cases(world(), 200, max_history=4, seed=0, min_history=1)
    accuracy = beam_pairs(trained(), cases, USERS, count=3, beams=20, created_by="test")
    novelty = novelty_pairs(
        trained(),
        cases,
        USERS,
        popularity=popularity(),
        candidates=4,
        min_ratio=2.0,
        max_rejected=3,
        beams=20,
        created_by="test",
    )
    return accuracy, novelty


@cache
def tuned() -> GenerativeRecommender:
    headed = trained().with_objectives(["accuracy", "novelty"])
    config = PreferenceFitConfig.model_validate(
        {"epochs": 3, "batch_pairs": 64, "learning_rate": 3e-3, "negatives": "table", "loss": {"sft_weight": 0.2}}
    )
    logged: dict[str, list[float]] = {}
    result = fit_preferences(
        headed,
        PreferencePairs.concat(tables()),
        config,
        seed=0,
        validate=lambda: 0.0,
        log=lambda tag, value, step: logged.setdefault(tag, []).append(value),
    )
    assert result.best_epoch == 3, "there is no best epoch of a mix: the last one stays"
    assert logged["objective/novelty/margin"][0] == pytest.approx(0, abs=1e-5), "the reference has the same heads"
    assert logged["objective/novelty/margin"][-1] > 0.2
    assert logged["objective/accuracy/margin"][-1] > 0
    return headed


def cases() -> Examples:
    return sample_cases(world(), 500, max_history=4, seed=1)


def dial(recommender: GenerativeRecommender) -> tuple[float, float]:
    """NDCG@5 and the mean log-popularity of the lists of five."""
    found = recommender.recommend(cases().histories, 5).items
    ndcg = accuracy_metrics(found, cases().targets, (5,))["ndcg@5"].numerator.mean()
    return float(ndcg), float(np.log1p(popularity()[found]).mean())


def test_novelty_pairs_choose_the_rarest_of_the_models_best_items() -> None:
    _, novelty = tables()
    assert len(novelty) > 80
    assert novelty.objectives() == ("novelty",)
    counts = popularity()
    histories = Sequences.from_lists(novelty.frame["prompt_items"].to_list())
    for pair, best in zip(novelty, trained().recommend(histories, 4, beams=20).items.tolist(), strict=True):
        assert pair.chosen_item == min(best, key=lambda item: (counts[item], best.index(item)))
        assert set(pair.rejected_items) <= set(best)
        for item in pair.rejected_items:
            assert (1 + counts[item]) > 2 * (1 + counts[pair.chosen_item])


def test_turning_the_dial_moves_each_metric_one_way() -> None:
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = [dial(tuned().weighted({"accuracy": 1 - share, "novelty": share})) for share in shares]
    ndcg, popular = zip(*found, strict=True)
    assert spearmanr(shares, popular).statistic <= -0.8
    assert spearmanr(shares, ndcg).statistic <= -0.8
    assert popular[-1] < dial(trained())[1] - 0.1
    assert ndcg[0] > dial(trained())[0] - 0.02
    assert dial(tuned()) == found[2], "equal weights are the default"


def test_each_head_learns_its_own_order_and_not_the_others() -> None:
    """On pairs about novelty the head for novelty agrees with nearly all, that for accuracy with less than half."""
    _, novelty = tables()
    frame = novelty.frame
    items = Sequences.from_lists(frame["prompt_items"].to_list())
    padded = torch.from_numpy(pad_right(items.items, items.offsets[:-1], items.lengths))
    lengths = torch.from_numpy(items.lengths)
    candidates = torch.tensor([[row[0], row[1][0]] for row in frame.select("chosen_item", "rejected_items").rows()])
    agreed, model = [], policy_model(tuned().model)
    for number in range(2):
        owners = torch.full((len(frame),), number)
        with torch.no_grad():
            found = head_log_probs(model, padded, lengths, candidates, owners)
        agreed.append(float((found[:, 0] > found[:, 1]).float().mean()))
    assert agreed[0] < 0.5
    assert agreed[1] > 0.9


def test_one_tuned_head_is_the_plain_model_tuned() -> None:
    accuracy, _ = tables()
    config = PreferenceFitConfig.model_validate({"epochs": 1, "batch_pairs": 64, "negatives": "table"})
    plain = GenerativeRecommender(trained().config, trained().codes, SIZES, None, copy.deepcopy(trained().model))
    headed = trained().with_objectives(["accuracy"])
    for recommender in (plain, headed):
        better = iter([0.0, 1.0])
        fit_preferences(recommender, accuracy, config, seed=0, validate=lambda scores=better: next(scores))  # type: ignore[misc]
    assert not torch.equal(plain.model.begin, trained().model.begin)  # type: ignore[arg-type]
    state = headed.model.state_dict()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(state[name.replace("depth.", "depth.objectives.0.", 1)], value, rtol=0, atol=1e-6)


def test_what_heads_cannot_learn_from_is_named() -> None:
    accuracy, novelty = tables()
    headed = trained().with_objectives(["accuracy", "novelty"])

    def fit(pairs: PreferencePairs, negatives: str = "table") -> None:
        config = PreferenceFitConfig.model_validate({"epochs": 1, "negatives": negatives})
        fit_preferences(headed, pairs, config, seed=0, validate=lambda: 0.0)

    with pytest.raises(ConfigError, match="negatives=beam knows no objectives"):
        fit(PreferencePairs.concat([accuracy, novelty]), "beam")
    with pytest.raises(DataError, match="pairs about novelty, and heads for accuracy and novelty; 'accuracy' needs"):
        fit(novelty)
    strange = PreferencePairs.from_rows([dataclasses.replace(next(iter(accuracy)), objective_id=7)])
    with pytest.raises(DataError, match=r"column 'objective_id' is none of 0 \(accuracy\), 1 \(novelty\)"):
        fit(strange)
    with pytest.raises(ValueError, match="no heads of objectives"):
        head_log_probs(policy_model(trained().model), *[torch.zeros(1, 1, dtype=torch.int64)] * 4)


def test_heads_can_learn_while_all_that_they_share_stays() -> None:
    headed = trained().with_objectives(["accuracy", "novelty"])
    before = {name: value.clone() for name, value in headed.model.state_dict().items()}
    config = PreferenceFitConfig.model_validate({"epochs": 1, "batch_pairs": 64, "negatives": "table"})
    pairs = PreferencePairs.concat(tables())
    fit_preferences(headed, pairs, config, seed=0, validate=lambda: 0.0, heads_only=True)
    for name, value in headed.model.state_dict().items():
        if name.startswith("depth."):
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name]), name
    assert all(weight.requires_grad for weight in headed.model.parameters()), "for the fit only"
