"""A language model that reasons as a policy: its log-probabilities are those of its sampler and of its decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_codes import random_codes
from tiny_lm import save_tiny_lm
from torch import Tensor

from recsys.alignment.group_policy import ChainPolicy, ChainPolicyLoss, ChainsConfig, GroupPolicyConfig, SampledChains
from recsys.alignment.group_policy.advantages import group_advantages
from recsys.alignment.group_policy.legality import unconstrained_legality
from recsys.data import Sequences
from recsys.errors import ConfigError
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.recommender import GeneratorModel, build_model

SIZES, NUM_ITEMS = (4, 8), 20
HISTORIES = Sequences.from_lists([[1, 2], [3], [4, 5, 6]])
CHAINS = ChainsConfig(chains=3, answers=4, max_tokens=6, temperature=1.3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"), tied=False)


def fresh(source: Path, shape: str = "nested", num_items: int = NUM_ITEMS) -> GeneratorModel:
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": shape, "max_history": 4, "lm": {"name": str(source)}})
    )
    torch.manual_seed(0)
    model = build_model(config, random_codes(num_items, SIZES), SIZES, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_().add_(0.15 * torch.randn_like(parameter))
    return model


def proposed(policy: ChainPolicy, **changes: Any) -> SampledChains:
    futures = torch.tensor([[7], [8], [-1]])
    arguments = {"futures": futures, "mask_seen": False, "random": np.random.default_rng(0), **changes}
    return policy.propose(HISTORIES, **arguments)


@pytest.mark.parametrize("shape", ["nested", "flat"])
@pytest.mark.parametrize("batch_rows", [150, 4096])
def test_likelihoods_are_those_of_sampler_and_decoder(source: Path, shape: str, batch_rows: int) -> None:
    policy = ChainPolicy(fresh(source, shape), CHAINS.model_copy(update={"batch_rows": batch_rows}))
    sampled = proposed(policy)
    words, answers = policy.frozen_likelihoods(sampled)
    chains = sampled.chains
    assert sampled.rollouts.items.shape == (9, 4)
    assert bool((words[chains.is_word] < 0).all())
    torch.testing.assert_close(words, chains.log_probs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers, sampled.rollouts.scores, atol=1e-4, rtol=1e-4)
    slow = policy.answers_over_vocabulary(sampled, over_vocabulary=False)
    torch.testing.assert_close(answers, slow, atol=1e-4, rtol=1e-4)


def test_seen_items_are_not_answers_and_draws_repeat(source: Path) -> None:
    policy = ChainPolicy(fresh(source), CHAINS.model_copy(update={"answers": 19}))
    found, again = (proposed(policy, mask_seen=True, stochastic=True) for _ in range(2))
    for row, items in enumerate(found.rollouts.items.tolist()):
        assert not set(items) & set(HISTORIES[row // 3].tolist())
    assert torch.equal(found.rollouts.items, again.rollouts.items)
    assert torch.equal(found.chains.words, again.chains.words)
    assert found.weights.sum(1).tolist() == pytest.approx(9 * [1.0], abs=1e-5)
    assert found.rollouts.texts is not None
    assert {len(set(texts)) for texts in found.rollouts.texts} == {1}


def test_a_chain_that_ends_itself_is_read_as_it_was_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(source)
    policy = ChainPolicy(model, CHAINS.model_copy(update={"max_tokens": 200}))
    backbone = policy.language.backbone
    wording = backbone.templates.reasoning
    text = wording.steps.format(evidence="fox", preference="dog", intent="box")
    whole = backbone.text_tokens(text) + backbone.text_tokens(wording.end)
    script = iter([*whole, *9 * [backbone.end_of_text]])

    def follow(logits: Tensor, config: Any, generator: Any) -> tuple[Tensor, Tensor]:
        # The first chain is well formed, the second ends at once with the model's own end, the third never.
        return torch.tensor([next(script), backbone.end_of_text, 5]).repeat(3), torch.zeros(9)

    monkeypatch.setattr("recsys.generator.lm.reason._draw", follow)
    policy.config = policy.config.model_copy(update={"max_tokens": len(whole)})
    sampled = proposed(policy)
    chains = sampled.chains
    assert chains.counts[:3].tolist() == [len(whole), 1, len(whole)]
    assert chains.ended[:3].tolist() == [True, False, False]
    assert chains.well_formed[:3].tolist() == [True, False, False]
    end, lead = backbone.text_tokens(wording.end), backbone.text_tokens(str(wording.lead(None)[0]))
    tokens = [chains.rows[0, row, chains.begins[row] : chains.lengths[row]].tolist() for row in range(3)]
    assert tokens == [whole + lead, end + lead, len(whole) * [5] + end + lead]
    words, _ = policy.frozen_likelihoods(sampled)
    # The model's own end is predicted by the row before it, and is not read on from.
    assert words[1, 0] < 0
    assert words[1, 1:].tolist() == (len(whole) - 1) * [0.0]
    loss = ChainPolicyLoss(
        policy, policy, GroupPolicyConfig(), policy.config.model_copy(update={"length_penalty": 0.5, "free_tokens": 10})
    )
    long = -0.5 * (len(whole) - 10) / 10
    assert loss.own_rewards(sampled)[:3].tolist() == pytest.approx([long, -1.0, -1.0 + long])


def losses(source: Path, chains: ChainsConfig, **policy: Any) -> ChainPolicyLoss:
    values = {"supervised_weight": 0.0, "kl_weight": 0.0, "advantage": "grpo", **policy}
    config = GroupPolicyConfig.model_validate(values)
    asked, reference = (ChainPolicy(fresh(source), chains) for _ in range(2))
    return ChainPolicyLoss(asked, reference, config, chains)


def gradients(model: GeneratorModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_an_answer_only_signal_leaves_the_words_alone(source: Path) -> None:
    """Chains are equally good in expectation: the text head, which only words go through, is not moved."""
    chains = CHAINS.model_copy(update={"answers": 2, "malformed_penalty": 0.0})
    loss = losses(source, chains)
    sampled = proposed(loss.policy)
    # Two answers worth 1 - w and -w under shares w and 1 - w come to 0 under every chain.
    weights = sampled.weights
    rewards = torch.stack([1 - weights[:, 0], -weights[:, 0]], dim=1)
    judged = loss.judge(sampled, rewards)
    assert bool((judged.credit.chains == 0).all())
    assert bool((judged.credit.answers != 0).all())
    assert judged.health["chain_zero_variance"] == 1
    assert judged.health["zero_variance"] == 0
    health = loss.learn(judged, is_first=True)
    assert health["chain_policy_loss"] == 0
    found = gradients(loss.policy.model)
    assert float(found["body.text_head.weight"].abs().max()) == 0
    assert float(found["depth.heads.0.weight"].abs().max()) > 0


def test_a_signal_of_chains_alone_leaves_the_answers_alone(source: Path) -> None:
    loss = losses(source, CHAINS)
    sampled = proposed(loss.policy)
    rewards = torch.arange(9.0).unsqueeze(1).expand(-1, 4)
    judged = loss.judge(sampled, rewards)
    assert bool((judged.credit.answers == 0).all())
    loss.learn(judged, is_first=True)
    found = gradients(loss.policy.model)
    assert float(found["body.text_head.weight"].abs().max()) > 0
    assert float(found["depth.heads.0.weight"].abs().max()) == 0


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_gradients_of_answers_are_those_of_reading_them_whole(source: Path, shape: str) -> None:
    """Answers of one chain share its reading, through which their gradients must go."""
    policy = ChainPolicy(fresh(source, shape), CHAINS.model_copy(update={"chains": 2, "answers": 3}))
    sampled = proposed(policy)
    signal = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for part in policy.likelihoods(sampled):
        (signal[part.numbers] * part.answers).sum().backward()  # type: ignore[no-untyped-call]
    found = gradients(policy.model)
    policy.model.zero_grad()
    whole = policy.answers_over_vocabulary.__wrapped__(policy, sampled, over_vocabulary=False)  # type: ignore[attr-defined]
    (signal * whole).sum().backward()
    expected = gradients(policy.model)
    assert {name for name, value in found.items() if value.any()} == {
        name for name, value in expected.items() if value.any()
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("kind", "batch_rows"), [("grpo", 4096), ("grpo", 1), ("dr_grpo", 150)])
def test_one_answer_a_chain_is_plain_grpo_over_chain_and_answer(source: Path, kind: str, batch_rows: int) -> None:
    chains = CHAINS.model_copy(update={"answers": 1, "malformed_penalty": 0.0, "batch_rows": batch_rows})
    loss = losses(source, chains, advantage=kind)
    sampled = proposed(loss.policy)
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.2, 0.2, 0.9, 1.0, 0.0, 0.0])
    loss.learn(loss.judge(sampled, rewards.unsqueeze(1)), is_first=True)
    found = gradients(loss.policy.model)
    loss.policy.model.zero_grad()
    advantages = group_advantages(
        rewards.view(3, 3),
        torch.ones(3, 3, dtype=torch.bool),
        kind,  # type: ignore[arg-type]
    ).view(9, 1)
    (whole,) = loss.policy.__class__(loss.policy.model, CHAINS.model_copy(update={"answers": 1})).likelihoods(sampled)
    is_word, order = sampled.chains.is_word, whole.numbers
    count = float(is_word.sum()) if kind == "grpo" else 9 * chains.max_tokens
    objective = (advantages[order] * whole.words).sum() / count + (advantages[order] * whole.answers).mean()
    (-objective).backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(loss.policy.model).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


def test_the_divergence_taken_off_rewards_goes_to_the_part_that_it_is_of(source: Path) -> None:
    loss = losses(source, CHAINS, advantage="dr_grpo", kl_place="reward", kl_weight=0.5)
    with torch.no_grad():
        for parameter in loss.reference.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    sampled = proposed(loss.policy)
    judged = loss.judge(sampled, torch.zeros(9, 4))
    words = (sampled.chains.log_probs - judged.reference_words) * sampled.chains.is_word
    of_answers = -0.5 * (sampled.rollouts.scores - judged.reference_answers)
    totals = -0.5 * words.sum(1) + (sampled.weights * of_answers).sum(1) + loss.own_rewards(sampled)
    torch.testing.assert_close(judged.credit.chain_rewards.flatten(), totals)
    torch.testing.assert_close(judged.credit.answers, of_answers - of_answers.mean(1, keepdim=True))


def test_the_power_of_the_weights_is_read(source: Path) -> None:
    of_answers = []
    for power in (1.0, 0.3):
        loss = losses(source, CHAINS, advantage="expected", weight_power=power)
        judged = loss.judge(proposed(loss.policy), torch.eye(4)[0].expand(9, -1))
        of_answers.append(judged.credit.answers)
    # The first answer is the most probable one, and its share is what the power takes away from.
    assert bool((of_answers[0] - of_answers[1]).abs().max() > 1e-3)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_legality_is_the_probability_of_all_items_without_a_trie(source: Path, shape: str) -> None:
    for num_items, all_legal in ((4 * 8, True), (NUM_ITEMS, False)):
        policy = ChainPolicy(fresh(source, shape, num_items), CHAINS.model_copy(update={"answers": num_items}))
        sampled = proposed(policy)
        over_all = policy.answers_over_vocabulary(sampled)
        found = unconstrained_legality(sampled.rollouts.scores, over_all, sampled.weights)
        assert found == pytest.approx(float(over_all.exp().sum(1).mean()), abs=1e-4)
        assert (found == pytest.approx(1.0, abs=1e-4)) == all_legal


def test_chains_that_the_model_cannot_read_are_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"reasoning\.max_tokens=500 .* the language model reads 512"):
        ChainPolicy(fresh(source), CHAINS.model_copy(update={"max_tokens": 500}))
