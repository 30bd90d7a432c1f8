"""Training in bfloat16: ratios begin at exactly 1, and what is learned is nearly what float32 learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_group_policy as policies
import test_preference_fit as preferences
import torch
from random_codes import random_codes
from tiny_lm import save_tiny_lm
from torch import Tensor

from recsys.alignment.candidates import candidate_log_probs, policy_model
from recsys.alignment.group_policy import (
    ChainPolicy,
    ChainPolicyLoss,
    ChainsConfig,
    GroupPolicyConfig,
    GroupPolicyLoss,
    Policy,
    labelled_prompts,
)
from recsys.alignment.losses import LossConfig, PairLogProbs, preference_loss
from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.data import Sequences
from recsys.generator import GenerativeRecommender, GeneratorConfig, build_model
from recsys.generator.config import ModelConfig
from recsys.generator.recommender import GeneratorModel
from training.group_policy import GroupPolicyFitConfig
from training.precision import Precision, multiplied_in, training_dtype
from training.preference_fit import PreferenceFitConfig, fit_preferences

NO_STEP = 1e-30
"""A learning rate at which weights stay what they are."""
SHAPES = pytest.mark.parametrize("shape", ["nested", "flat"])


def rough(shape: str) -> GenerativeRecommender:
    """Weights large enough that bfloat16 rounds what comes of them, over histories of up to 12 items."""
    sizes = (4, 8, 8)
    codes = random_codes(60, sizes)
    config = GeneratorConfig(model=ModelConfig.model_validate({"shape": shape, "hidden_size": 32, "max_history": 12}))
    torch.manual_seed(0)
    model = moved(build_model(config, codes, sizes, None), 0.15)
    return GenerativeRecommender(config, codes, sizes, None, model)


def moved(model: GeneratorModel, by: float) -> GeneratorModel:
    """The same one, somewhere else."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * torch.randn(weight.shape, generator=generator))
    return model


def gradient(model: GeneratorModel) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def rough_pairs() -> PreferencePairs:
    """Prompts of all lengths, some of them perturbed."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        prompt = rng.integers(0, 60, rng.integers(1, 13)).tolist()
        chosen, *rejected = rng.permutation(60)[:4].tolist()
        fields: dict[str, Any] = {"rejected_prompts": [[*prompt[::-1], 3]] * 3} if number % 4 == 0 else {}
        rows.append(
            PreferencePair(
                pair_id=str(number),
                user_id="u",
                source="perturbed_history" if fields else "rating",
                created_by="test",
                prompt_items=prompt,
                chosen_item=chosen,
                rejected_items=rejected,
                **fields,
            )
        )
    return PreferencePairs.from_rows(rows)


# --- which one --------------------------------------------------------------------------------------------------------


def test_auto_is_float32_on_every_cpu() -> None:
    cpu = torch.device("cpu")
    assert training_dtype("auto", cpu) == training_dtype("float32", cpu) == torch.float32
    assert training_dtype("bfloat16", cpu) == torch.bfloat16


def test_it_holds_for_a_stretch_of_code_however_that_ends() -> None:
    body, products = rough("nested").model.body, torch.backends.cuda.matmul
    before = products.fp32_precision

    def fails() -> None:
        with multiplied_in(torch.bfloat16, body):
            assert body.precision == torch.bfloat16
            assert products.fp32_precision == "tf32"
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert body.precision == torch.float32
    assert products.fp32_precision == before


@pytest.mark.parametrize("config", [PreferenceFitConfig, GroupPolicyFitConfig])
def test_what_was_aligned_before_there_was_a_choice_stays_up_to_date(
    config: type[PreferenceFitConfig | GroupPolicyFitConfig],
) -> None:
    assert "precision" not in config().model_dump(mode="json")
    assert config(precision="bfloat16").model_dump(mode="json")["precision"] == "bfloat16"


# --- reading ----------------------------------------------------------------------------------------------------------


@SHAPES
def test_reading_and_searching_are_rounded_and_float32_comes_out(shape: str) -> None:
    model = rough(shape).model.eval()
    items, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    with torch.no_grad():
        exact, known = model.encode(items, lengths), model.target_log_probs(items, lengths)
        with multiplied_in(torch.bfloat16, model.body):
            half, rounded = model.encode(items, lengths), model.target_log_probs(items, lengths)
    assert half.hidden.dtype == rounded.dtype == torch.float32
    for found, expected in ((half.hidden, exact.hidden), (rounded, known)):
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


# --- pairs ------------------------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("negatives", ["table", "random"])
def test_before_the_first_step_every_batch_costs_log_2(shape: str, negatives: str) -> None:
    recommender, log = rough(shape), preferences.Scalars()
    config = preferences.settings(
        loss={"name": "dpo", "beta": 1.0},
        negatives=negatives,
        precision="bfloat16",
        learning_rate=NO_STEP,
        epochs=2,
        batch_pairs=7,
        patience=9,
    )
    fit_preferences(recommender, rough_pairs(), config, seed=0, validate=preferences.rising(), log=log)
    assert log.values["train/loss"] == pytest.approx([math.log(2)] * 12, abs=1e-7)
    assert set(log.values["preference/margin"]) == {0.0}


@SHAPES
def test_a_loss_of_pairs_has_nearly_the_gradient_of_float32(shape: str) -> None:
    """Within 2 % of its length, and the loss within 1 %; policy and reference are apart."""
    rng = np.random.default_rng(0)
    items, lengths = torch.from_numpy(rng.integers(0, 60, (40, 12))), torch.from_numpy(rng.integers(1, 13, 40))
    answers = torch.from_numpy(rng.permuted(np.tile(np.arange(60), (40, 1)), axis=1)[:, :4])
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy, reference = rough(shape).model.eval(), moved(rough(shape).model, 0.05).eval()
        with multiplied_in(dtype, policy.body), multiplied_in(dtype, reference.body):
            with torch.no_grad():
                before = candidate_log_probs(policy_model(reference), items, lengths, answers)
            now = candidate_log_probs(policy_model(policy), items, lengths, answers)
            loss = preference_loss(
                PairLogProbs(
                    chosen=now[:, 0],
                    rejected=now[:, 1:],
                    reference_chosen=before[:, 0],
                    reference_rejected=before[:, 1:],
                ),
                LossConfig(name="dpo", beta=1.0),
            )
            loss.backward()
        found[dtype] = loss.item(), gradient(policy)
    (exact, expected), (rounded, close) = found[torch.float32], found[torch.bfloat16]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)
    assert float((close - expected).norm() / expected.norm()) < 0.02


@SHAPES
def test_pairs_are_learned_nearly_as_in_float32(shape: str) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        log = preferences.Scalars()
        config = preferences.settings(loss=LossConfig(name="dpo", beta=1.0), epochs=8, precision=precision)
        result = fit_preferences(
            preferences.fresh(shape),
            preferences.successors(),
            config,
            seed=0,
            validate=preferences.rising(),
            log=log,
        )
        losses[precision] = [entry["loss"] for entry in result.curve]
        assert losses[precision][-1] < 0.5 * losses[precision][0]
    assert losses["float32"] != losses["bfloat16"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05, atol=0.005)


# --- policies ---------------------------------------------------------------------------------------------------------

HISTORIES = Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]])


def _policy_loss(recommender: GenerativeRecommender, **policy: Any) -> GroupPolicyLoss:
    values = {"group_size": 6, "advantage": "grpo", "supervised_weight": 0.1, **policy}
    reference = rough(recommender.config.model.shape).model
    reference.body.precision = recommender.model.body.precision
    return GroupPolicyLoss(Policy(recommender.model), Policy(reference), GroupPolicyConfig.model_validate(values))


@SHAPES
@pytest.mark.parametrize("normalise", ["legal", "vocabulary"])
def test_a_policy_is_its_reference_and_its_own_past_until_a_step_is_taken(shape: str, normalise: str) -> None:
    recommender = rough(shape)
    with multiplied_in(torch.bfloat16, recommender.model.body):
        loss = _policy_loss(recommender, normalise=normalise, kl_weight=0.1)
        futures = torch.tensor([[1], [2], [3], [4]])
        sampled = loss.propose(HISTORIES, futures=futures, mask_seen=True, random=np.random.default_rng(0))
        rollouts = sampled.rollouts
        judged = loss.judge(sampled, torch.arange(24.0).view(4, 6))
        found = loss.policy.likelihoods(rollouts, with_history=True, over_vocabulary=normalise == "vocabulary")
        # Without a step, the second update on the same proposals is the first.
        first, second = (loss.step(judged, is_first=is_first) for is_first in (True, False))
    assert torch.equal(judged.old, judged.reference)
    assert torch.equal(judged.old, found.proposals)
    assert judged.health["kl"] == 0
    assert first.loss.item() == second.loss.item()
    assert second.health["clipped"] == 0
    if normalise == "legal":
        torch.testing.assert_close(judged.old, rollouts.scores, atol=0.1, rtol=0)


@SHAPES
def test_a_policy_has_nearly_the_gradient_of_float32(shape: str) -> None:
    """Within 10 % of its length, on the same proposals; a second step, so that ratios and the divergence count."""
    found = {}
    proposed = _policy_loss(rough(shape)).propose(
        HISTORIES, futures=torch.zeros(4, 0), mask_seen=False, random=np.random.default_rng(0)
    )
    for dtype in (torch.float32, torch.bfloat16):
        recommender = rough(shape)
        with multiplied_in(dtype, recommender.model.body):
            loss = _policy_loss(recommender, kl_weight=0.5)
            judged = loss.judge(proposed, torch.sin(torch.arange(24.0)).view(4, 6))
            moved(recommender.model, 0.02)
            loss.learn(judged, is_first=False)
        found[dtype] = gradient(recommender.model)
    assert not torch.equal(found[torch.bfloat16], found[torch.float32])
    assert float((found[torch.bfloat16] - found[torch.float32]).norm() / found[torch.float32].norm()) < 0.1


@SHAPES
def test_a_policy_learns_nearly_as_in_float32(shape: str) -> None:
    prompts, probable = labelled_prompts(policies.TRAIN), {}
    for precision in ("float32", "bfloat16"):
        recommender = policies.fresh(shape)
        before = policies.mean_probability(recommender, prompts)
        config = policies.settings(
            updates=40,
            batch_prompts=48,
            learning_rate=2e-2,
            precision=precision,
            policy={"supervised_weight": 0.0, "advantage": "dr_grpo", "updates_per_rollout": 2},
        )
        policies.tune(recommender, config)
        probable[precision] = policies.mean_probability(recommender, prompts)
        assert probable[precision] > 1.5 * before
    assert probable["bfloat16"] != probable["float32"]
    assert probable["bfloat16"] == pytest.approx(probable["float32"], rel=0.15)


@SHAPES
def test_words_and_answers_are_those_of_the_past_until_a_step_is_taken(shape: str, tmp_path: Path) -> None:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": shape, "max_history": 3, "lm": {"name": str(save_tiny_lm(tmp_path))}}
        )
    )
    torch.manual_seed(0)
    model = moved(build_model(config, random_codes(20, (4, 8)), (4, 8), None), 0.15)
    chains = ChainsConfig(chains=3, answers=3, max_tokens=8)
    with multiplied_in(torch.bfloat16, model.body):
        policy = ChainPolicy(model, chains)
        loss = ChainPolicyLoss(policy, policy, GroupPolicyConfig(advantage="grpo"), chains)
        histories = Sequences.from_lists([[1, 2], [3]])
        sampled = loss.propose(histories, futures=torch.zeros(2, 0), mask_seen=False, random=np.random.default_rng(0))
        judged = loss.judge(sampled, torch.arange(18.0).view(6, 3))
        (found,) = policy.likelihoods(sampled)
    order = found.numbers
    assert torch.equal(judged.old_words[order], found.words)
    assert torch.equal(judged.old_answers[order], found.answers)
    assert judged.health["kl"] == judged.health["chain_kl"] == 0
    assert not torch.equal(judged.old_words, sampled.chains.log_probs), (
        "words that are drawn one by one round otherwise"
    )


# --- fits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_what_is_validated_is_read_in_float32(precision: Precision) -> None:
    seen = []

    def watched(recommender: GenerativeRecommender, then: Callable[[], Any]) -> Callable[[], Any]:
        def validate() -> Any:
            seen.append(recommender.model.body.precision)
            return then()

        return validate

    recommender = preferences.fresh()
    fit_preferences(
        recommender,
        preferences.successors(8),
        preferences.settings(precision=precision, epochs=1),
        seed=0,
        validate=watched(recommender, preferences.rising()),
    )
    recommender = policies.fresh()
    settings = policies.settings(updates=2, validate_every=1, precision=precision)
    policies.tune(recommender, settings, validate=watched(recommender, policies.rising()))
    assert seen == [torch.float32] * 4
    assert recommender.model.body.precision == torch.float32


def test_on_a_cpu_auto_trains_as_float32_does() -> None:
    tuned, aligned = [], []
    for changes in ({}, {"precision": "float32"}):
        recommender = preferences.fresh()
        fit_preferences(
            recommender,
            preferences.successors(),
            preferences.settings(device="cpu", **changes),
            seed=0,
            validate=preferences.rising(),
        )
        tuned.append(policies.weights(recommender))
        recommender = policies.fresh()
        policies.tune(recommender, policies.settings(updates=4, **changes))
        aligned.append(policies.weights(recommender))
    for one, other in (tuned, aligned):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.gpu
@SHAPES
def test_on_a_gpu_pairs_and_policies_are_learned_in_bfloat16(shape: str) -> None:
    recommender, log = preferences.fresh(shape), preferences.Scalars()
    config = preferences.settings(loss=LossConfig(name="dpo", beta=1.0), epochs=8, device="cuda")
    seen = []

    def validate() -> float:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return float(len(seen))

    before = torch.backends.cuda.matmul.fp32_precision
    result = fit_preferences(recommender, preferences.successors(), config, seed=0, validate=validate, log=log)
    assert log.values["preference/margin"][0] == 0
    assert result.curve[-1]["loss"] < 0.5 * result.curve[0]["loss"]
    assert set(seen) == {before}
    recommender, prompts = policies.fresh(shape), labelled_prompts(policies.TRAIN)
    first = policies.mean_probability(recommender, prompts)
    settings = policies.settings(
        updates=40,
        batch_prompts=48,
        learning_rate=2e-2,
        device="cuda",
        policy={"supervised_weight": 0.0, "advantage": "grpo", "updates_per_rollout": 2},
    )
    policies.tune(recommender, settings)
    assert recommender.model.learned.is_cuda
    assert policies.mean_probability(recommender, prompts) > 1.5 * first
