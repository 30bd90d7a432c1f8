"""The loop of group policy optimisation over chains of reasons: it learns which words pay, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from random_codes import random_codes
from tiny_lm import save_tiny_lm
from torch import Tensor

from recsys.alignment.group_policy import ChainPolicy, ChainPolicyLoss, SampledChains, labelled_prompts
from recsys.alignment.rewards import RewardContext, Rewards, RewardsConfig, build_rewards
from recsys.alignment.rollouts import Rollouts
from recsys.data import Sequences
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.recommender import GeneratorModel, build_model
from training.group_policy import GroupPolicyFitConfig, GroupPolicyResult, Served, fit_group_policy

SIZES, NUM_ITEMS = (4, 8), 20
CODES = random_codes(NUM_ITEMS, SIZES)
TRAIN = Sequences.from_lists([[(start + step) % NUM_ITEMS for step in range(3)] for start in range(NUM_ITEMS)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"))


def fresh(source: Path, shape: str = "nested") -> GeneratorModel:
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": shape, "max_history": 3, "lm": {"name": str(source)}})
    )
    torch.manual_seed(0)
    model = build_model(config, CODES, SIZES, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_().add_(0.1 * torch.randn_like(parameter))
    return model


def settings(**changes: Any) -> GroupPolicyFitConfig:
    policy = {"advantage": "grpo", "supervised_weight": 0.0, **changes.pop("policy", {})}
    reasoning = {"chains": 4, "answers": 3, "max_tokens": 4, **changes.pop("reasoning", {})}
    values = {"updates": 4, "batch_prompts": 6, "learning_rate": 3e-3, "validate_every": 2, "device": "cpu"}
    return GroupPolicyFitConfig.model_validate(
        {**values, "dropout": False, **changes, "policy": policy, "reasoning": reasoning}
    )


def rewards(**changes: Any) -> Rewards:
    config = RewardsConfig.model_validate({"terms": [{"kind": "prefix", **changes}]})
    return build_rewards(config, RewardContext(codes=torch.from_numpy(CODES), codebook_sizes=SIZES))


def of(ndcg: float) -> Served:
    return Served(ndcg=ndcg, recall_at_50=0.5, coverage=0.5, popularity=2.0)


def tune(model: GeneratorModel, config: GroupPolicyFitConfig, judge: Rewards, **changes: Any) -> GroupPolicyResult:
    values = iter(range(1, 1000))
    arguments: dict[str, Any] = {"seed": 3, "start": of(0.0), "validate": lambda: of(next(values)), "mask_seen": False}
    return fit_group_policy(model, labelled_prompts(TRAIN), judge, config, **{**arguments, **changes})


class PaysAfter:
    """Even items are worth 1 after a chain that begins with a certain word; nothing else is worth anything."""

    name = "prefix"

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, rollouts: Rollouts) -> Tensor:
        assert rollouts.texts is not None
        said = torch.tensor([[text.startswith(self.text) for text in row] for row in rollouts.texts])
        return ((rollouts.items % 2 == 0) & said & rollouts.is_real).float()


def test_a_word_that_alone_makes_the_reward_reachable_becomes_probable(source: Path) -> None:
    model = fresh(source)
    config = settings(
        updates=12,
        batch_prompts=2,
        learning_rate=3e-2,
        validate_every=12,
        policy={"kl_weight": 0.0},
        reasoning={"chains": 24, "max_tokens": 1, "temperature": 0.4, "malformed_penalty": 0.0},
    )
    assert config.reasoning is not None
    policy = ChainPolicy(model, config.reasoning)
    prompts = labelled_prompts(TRAIN, max_prompts=10)

    def first_words() -> Tensor:
        """Share of each word among the beginnings of chains."""
        drawn = policy.propose(
            prompts.histories(), futures=prompts.futures(1), mask_seen=False, random=np.random.default_rng(0)
        )
        return torch.bincount(drawn.chains.words[:, 0], minlength=300) / len(drawn.chains.words)

    before = first_words()
    # A word that is drawn now and then, and that no other word begins with.
    texts = [policy.language.backbone.text([token]) for token in range(300)]
    alone = [sum(other.startswith(text) for other in texts) == 1 and text.isascii() and text != "" for text in texts]
    word = int(torch.where(torch.tensor(alone) & (before < 0.1), before, 0.0).argmax())
    assert 0.0 < float(before[word]) < 0.1
    judge = rewards()
    judge.terms["prefix"] = (judge.terms["prefix"][0], PaysAfter(texts[word]))
    result = tune(model, config, judge)
    assert float(first_words()[word]) > 0.5
    assert result.curve[-1]["chain_policy_loss"] != 0


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_fit_that_was_stopped_goes_on_bit_for_bit(source: Path, shape: str, tmp_path: Path) -> None:
    config = settings(
        policy={
            "updates_per_rollout": 2,
            "rollout": "stochastic_beam",
            "advantage": "srpo",
            "supervised_weight": 0.2,
            "surrogate": "ecpo",
        },
        batch_prompts=2,
        reasoning={"chains": 2, "answers": 2, "pass_at": 1, "max_tokens": 2},
    )
    judge = rewards(transform="log_sigmoid")
    whole, again = fresh(source, shape), fresh(source, shape)
    result = tune(whole, config, judge)

    class StoppedError(Exception):
        pass

    served = iter([of(1.0)])

    def stops_at_the_second() -> Served:
        for found in served:
            return found
        raise StoppedError

    with pytest.raises(StoppedError):
        tune(fresh(source, shape), config, judge, validate=stops_at_the_second, checkpoint_dir=tmp_path)
    values = iter([of(2.0)])
    resumed = tune(again, config, judge, validate=lambda: next(values), checkpoint_dir=tmp_path)
    assert resumed.curve == result.curve
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_reference_is_asked_for_the_levels_of_rewards_and_not_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    propose = ChainPolicyLoss.propose

    def counted(self: ChainPolicyLoss, *arguments: Any, **named: Any) -> SampledChains:
        asked.append(named["by_reference"])
        return propose(self, *arguments, **named)

    monkeypatch.setattr(ChainPolicyLoss, "propose", counted)
    config = settings(updates=2, batch_prompts=1, reasoning={"chains": 2, "answers": 1, "max_tokens": 1})
    tune(fresh(source), config, rewards(transform="log_sigmoid"))
    assert asked == [True, True, True, True, False, False], "its chains cost as much as the policy's"


def test_the_panel_shows_what_chains_are_like(source: Path) -> None:
    result = tune(fresh(source), settings(), rewards())
    entry = result.curve[-1]
    assert 3 < entry["chain_length"] <= 4
    assert entry["unfinished"] == entry["malformed"] == 1
    assert 0 < entry["chain_entropy"] < np.log(400)
    assert 0 < entry["legality"] < 1
    for name in ("zero_variance", "chain_zero_variance", "hits"):
        assert 0 <= entry[name] <= 1
    assert {"chain_kl", "chain_reward", "chain_clipped", "reward_prefix"} <= set(entry)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reasoning": {"chains": 1}}, "chains"),
        ({"policy": {"advantage": "srpo"}, "reasoning": {"pass_at": 4}}, r"reasoning\.pass_at=4 must be below"),
        ({"policy": {"advantage": "srpo"}, "reasoning": {"pass_at": 3}}, r"reasoning\.answers=3"),
        (
            {"policy": {"advantage": "expected", "weight_power": 0.5}, "reasoning": {"answers": 1}},
            r"policy\.weight_power=0\.5 is of several answers a chain",
        ),
        ({"policy": {"normalise": "vocabulary"}}, r"policy\.normalise=vocabulary is for items right behind a history"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(**changes)
