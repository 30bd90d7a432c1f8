"""The loop of group policy optimisation: it learns what is rewarded, keeps its guards, and resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.alignment.group_policy import Prompts, current_prompts, labelled_prompts
from recsys.alignment.rewards import RewardContext, Rewards, RewardsConfig, build_rewards
from recsys.data import Sequences
from recsys.errors import DataError, RewardError
from recsys.generator import GenerativeRecommender, GeneratorConfig, build_model
from recsys.generator.config import ModelConfig
from training.group_policy import GroupPolicyFitConfig, GroupPolicyResult, Served, fit_group_policy

NUM_ITEMS, SIZES = 24, (4, 8)
TRAIN = Sequences.from_lists([[(start + step) % NUM_ITEMS for step in range(5)] for start in range(NUM_ITEMS)])


def fresh(shape: str = "nested") -> GenerativeRecommender:
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    settings = {"shape": shape, "hidden_size": 16, "max_history": 6, "dropout": 0.1}
    config = GeneratorConfig(model=ModelConfig.model_validate(settings))
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, SIZES, None, build_model(config, codes, SIZES, None))


def rewards(recommender: GenerativeRecommender, *terms: dict[str, Any], **context: Any) -> Rewards:
    config = RewardsConfig.model_validate({"terms": terms or [{"kind": "exact"}]})
    codes = torch.from_numpy(recommender.codes)
    return build_rewards(config, RewardContext(codes=codes, codebook_sizes=SIZES, **context))


def settings(**changes: Any) -> GroupPolicyFitConfig:
    policy = {"group_size": 8, **changes.pop("policy", {})}
    values: dict[str, Any] = {"updates": 12, "batch_prompts": 16, "learning_rate": 1e-2, "validate_every": 4}
    values |= {"dropout": "updates_per_rollout" not in policy, "device": "cpu", **changes, "policy": policy}
    return GroupPolicyFitConfig.model_validate(values)


def of(ndcg: float, **changes: float) -> Served:
    return Served(**{"ndcg": ndcg, "recall_at_50": 0.5, "coverage": 0.5, "popularity": 2.0, **changes})


def rising(**changes: float) -> Callable[[], Served]:
    values = iter(range(1, 1000))
    return lambda: of(float(next(values)), **changes)


def tune(recommender: GenerativeRecommender, config: GroupPolicyFitConfig, **changes: Any) -> GroupPolicyResult:
    arguments: dict[str, Any] = {
        "prompts": labelled_prompts(TRAIN),
        "rewards": rewards(recommender),
        "seed": 3,
        "start": of(0.0),
        "validate": rising(),
        "mask_seen": False,
    }
    arguments |= changes
    prompts, judge = arguments.pop("prompts"), arguments.pop("rewards")
    return fit_group_policy(recommender.model, prompts, judge, config, **arguments)


def weights(recommender: GenerativeRecommender) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in recommender.model.state_dict().items()}


def mean_probability(recommender: GenerativeRecommender, prompts: Prompts) -> float:
    found = recommender.recommend(prompts.histories(), NUM_ITEMS, beams=NUM_ITEMS)
    is_next = found.items == prompts.futures(1).numpy()
    return float(np.exp(found.scores[is_next]).mean())


@pytest.mark.parametrize("shape", ["nested", "flat"])
@pytest.mark.parametrize(
    "policy",
    [
        {"advantage": "srpo"},
        {"advantage": "grpo", "rollout": "stochastic_beam"},
        {"advantage": "expected", "kl_place": "reward", "kl_weight": 0.1},
        {"advantage": "dr_grpo", "surrogate": "ecpo", "updates_per_rollout": 3},
        {"advantage": "grpo", "surrogate": "gbpo", "updates_per_rollout": 2},
        {"advantage": "grpo", "normalise": "vocabulary"},
    ],
)
def test_what_is_rewarded_becomes_more_probable(shape: str, policy: dict[str, Any]) -> None:
    recommender = fresh(shape)
    prompts = labelled_prompts(TRAIN)
    before = mean_probability(recommender, prompts)
    tune(
        recommender,
        settings(updates=40, batch_prompts=48, learning_rate=2e-2, policy={"supervised_weight": 0.0, **policy}),
    )
    assert mean_probability(recommender, prompts) > 1.5 * before


def test_rewards_without_labels_teach_too() -> None:
    recommender = fresh()

    def prefers_item_five(histories: Sequences) -> Any:
        return np.tile((np.arange(NUM_ITEMS) == 5).astype(np.float32), (len(histories), 1))

    judge = rewards(
        recommender,
        {"kind": "scorer", "scorer": "five", "normalise": "none"},
        scorers={"five": prefers_item_five},
    )
    config = settings(updates=30, policy={"supervised_weight": 0.0, "group_size": 16})
    tune(recommender, config, prompts=current_prompts(TRAIN), rewards=judge)
    first = recommender.recommend(TRAIN, 1).items[:, 0]
    assert (first == 5).mean() > 0.9


def test_a_fit_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = settings(policy={"updates_per_rollout": 2})
    whole, stopped = fresh(), fresh()
    tune(whole, config)

    class StoppedError(Exception):
        pass

    served = rising()

    def stops_at_the_second() -> Served:
        found = served()
        if found.ndcg == 2:
            raise StoppedError
        return found

    with pytest.raises(StoppedError):
        tune(stopped, config, validate=stops_at_the_second, checkpoint_dir=tmp_path)
    again = fresh()
    values = iter(range(2, 1000))
    tune(again, config, validate=lambda: of(float(next(values))), checkpoint_dir=tmp_path)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


@pytest.mark.parametrize("broken", [{"coverage": 0.4}, {"recall_at_50": 0.4}, {"popularity": 3.0}])
def test_what_breaks_a_guard_is_not_kept(broken: dict[str, float]) -> None:
    recommender = fresh()
    before = weights(recommender)
    result = tune(recommender, settings(), validate=rising(**broken))
    assert result.best_update == 0
    assert all(entry["kept"] == 0 for entry in result.curve)
    for name, value in before.items():
        assert torch.equal(value, weights(recommender)[name]), name


def test_the_best_update_is_kept_and_patience_ends_the_fit() -> None:
    values = iter([0.2, 0.5, 0.4, 0.3, 0.2, 0.1])
    recommender = fresh()
    result = tune(recommender, settings(updates=100, patience=2), start=of(0.3), validate=lambda: of(next(values)))
    assert result.best_update == 8
    assert [entry["steps"] for entry in result.curve] == [4, 8, 12, 16]


def test_a_reward_that_is_no_number_stops_and_keeps_what_was_there(tmp_path: Path) -> None:
    recommender = fresh()
    calls = 0

    def breaks(histories: Sequences) -> Any:
        nonlocal calls
        calls += 1
        ramp = np.arange(NUM_ITEMS, dtype=np.float32) * (np.nan if calls > 5 else 1.0)
        return np.tile(ramp, (len(histories), 1))

    judge = rewards(recommender, {"kind": "scorer", "scorer": "odd", "normalise": "none"}, scorers={"odd": breaks})
    with pytest.raises(RewardError, match="scorer"):
        tune(recommender, settings(), rewards=judge, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_groups_without_a_hit_move_nothing() -> None:
    """O2 of the brief: with the exact rule alone, all-miss groups have no gradient."""
    recommender = fresh()
    before = weights(recommender)
    config = settings(policy={"supervised_weight": 0.0, "kl_weight": 0.0, "advantage": "grpo"})
    result = tune(recommender, config, prompts=current_prompts(TRAIN))
    assert all(entry["zero_variance"] == 1 for entry in result.curve)
    assert any("equal rewards" in line for line in result.alarms)
    for name, value in before.items():
        assert torch.equal(value, weights(recommender)[name]), name


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(DataError, match="no prompts"):
        tune(fresh(), settings(), prompts=current_prompts(Sequences.from_lists([[]])))


def test_levels_of_the_reference_are_learned_before_the_first_update() -> None:
    recommender = fresh()
    popularity = torch.arange(NUM_ITEMS)
    judge = rewards(recommender, {"kind": "novelty", "transform": "log_sigmoid"}, popularity=popularity)
    tune(recommender, settings(updates=4), rewards=judge)
    assert set(judge.levels) == {"novelty"}
