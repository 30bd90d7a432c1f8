"""Tunes a generator by group policy optimisation: the loop, early stopping under guards, and exact resume.

Every update is seeded by (seed, update), so that a fit that goes on from a checkpoint is bit for bit the one that was
never stopped. Several processes share the prompts of an update: each proposes, judges and learns on its own of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from recsys.alignment.group_policy import (
    ChainPolicy,
    ChainPolicyLoss,
    ChainsConfig,
    GroupPolicyConfig,
    GroupPolicyLoss,
    Objective,
    Policy,
    Prompts,
)
from recsys.alignment.group_policy.health import alarms
from recsys.alignment.group_policy.objective import J, S
from recsys.alignment.rewards import Rewards
from recsys.alignment.rollouts import Rollouts
from recsys.config import StrictConfig
from recsys.data import IntArray
from recsys.errors import DataError
from recsys.evaluation.baselines.sasrec_model import pick_device
from recsys.generator.lm.reason import ReasonConfig
from recsys.generator.placement import place
from recsys.generator.recommender import GeneratorModel
from recsys.progress import console, progress_bar
from recsys.ranks import ALONE, Ranks
from training.checkpoints import Checkpoint, restore
from training.fit import in_vain, learning_rate_factor
from training.precision import Precision, multiplied_in, training_dtype

_LOG_EVERY = 10
_LEVEL_BATCHES = 4
"""Batches of the supervised model's proposals that reward levels are learned from."""


class ReasoningFitConfig(ChainsConfig):
    """How a model that reasons is tuned, with the reasons: see `ChainsConfig`."""

    served: ReasonConfig = ReasonConfig()
    """How chains are drawn in validation: as they are served in mode `reason`."""
    validation_users: int = Field(default=200, ge=1)
    """At most so many validation cases are ranked, each after its own chains."""


class GroupPolicyFitConfig(StrictConfig):
    """How a policy is tuned, and when tuning stops."""

    policy: GroupPolicyConfig = GroupPolicyConfig()
    """Groups, advantages and the loss."""
    reasoning: ReasoningFitConfig | None = None
    """Tune the reasons too, with credit split between a chain and its answers, and validate the lists of mode `reason`.
    Without it, items right behind a history are tuned."""
    updates: int = Field(default=200, ge=1)
    """Steps at most; the cosine schedule ends here."""
    batch_prompts: int = Field(default=256, ge=1)
    """Histories whose groups a step is taken on."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate; 1e-5 or less for language models."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the updates over which it rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    dropout: bool = True
    """Dropout stays on in the steps, as in the supervised fit; proposals are made without."""
    validate_every: int = Field(default=20, ge=1)
    """Updates between two validations of the served decoder; a checkpoint is written with each."""
    patience: int = Field(default=5, ge=1)
    """Stop after so many validations without a better NDCG@10 that keeps the guards."""
    min_coverage: float = Field(default=0.95, ge=0)
    """Guard: catalogue coverage of the lists, as a share of the supervised model's."""
    min_tail_recall: float = Field(default=1.0, ge=0)
    """Guard: Recall@50, as a share of the supervised model's."""
    max_popularity: float = Field(default=1.1, gt=0)
    """Guard: mean log-popularity of what is listed, as a share of the supervised model's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is a device, else the CPU."""
    precision: Precision = Field(default="auto", exclude_if=lambda precision: bool(precision == "auto"))
    """Of the matrix products, in proposals as in steps; `auto`: bfloat16 on a GPU that multiplies it natively, else
    float32."""

    @model_validator(mode="after")
    def _ratios_are_of_weights(self) -> Self:
        if self.dropout and self.policy.updates_per_rollout > 1:
            raise ValueError(
                "dropout: true with policy.updates_per_rollout above 1: noise would count as a change of the policy; "
                "set dropout: false"
            )
        return self

    @model_validator(mode="after")
    def _reasoning_fits_the_policy(self) -> Self:
        chosen = self.reasoning
        if chosen is None:
            return self
        if self.policy.normalise != "legal":
            raise ValueError(
                f"policy.normalise={self.policy.normalise} is for items right behind a history; set it to legal, or "
                "drop reasoning"
            )
        if self.policy.weight_power != 1 and chosen.answers == 1:
            raise ValueError(
                f"policy.weight_power={self.policy.weight_power} is of several answers a chain, and "
                "reasoning.answers=1; leave it out, or raise reasoning.answers"
            )
        if self.policy.advantage == "srpo":
            for name, size in (("chains", chosen.chains), ("answers", chosen.answers)):
                # A lone answer is compared with nothing.
                if size > 1 and chosen.pass_at >= size:
                    raise ValueError(
                        f"reasoning.pass_at={chosen.pass_at} must be below reasoning.{name}={size}; change one of them"
                    )
        return self


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the served decoder comes to on validation cases."""

    ndcg: float
    """NDCG@10."""
    recall_at_50: float
    coverage: float
    """Distinct items of the first ten places, as a share of the catalogue."""
    popularity: float
    """Mean over the first ten places of log(1 + training interactions)."""


@dataclass(frozen=True, kw_only=True)
class GroupPolicyResult:
    """What tuning leaves beside the weights, which are those of the best validation that keeps the guards."""

    curve: list[dict[str, float]]
    """One entry a validation: `steps`, what `Served` holds, `kept` (1 when the guards hold), means of the loss's health
    since the last one, and `legality` (see `recsys.alignment.group_policy.legality`) of the last proposals."""
    alarms: list[str]
    """What was out of bounds when tuning ended: see `health`."""
    best_update: int
    """After which the weights were kept; 0 for the supervised model's own."""


def fit_group_policy(
    model: GeneratorModel,
    prompts: Prompts,
    rewards: Rewards,
    config: GroupPolicyFitConfig,
    *,
    seed: int,
    start: Served,
    validate: Callable[[], Served],
    mask_seen: bool,
    horizon: int = 5,
    checkpoint_dir: Path | None = None,
    log: Callable[[str, float, int], None] = lambda tag, value, step: None,
    ranks: Ranks = ALONE,
) -> GroupPolicyResult:
    """Tune `model` in place; the reference is a copy of it as it is given.

    Args:
        model: a trained generator, nested or flat; moved to the configured device.
        prompts: the histories that it is asked about.
        rewards: what its proposals are worth.
        config: loss and schedule.
        seed: of the order of prompts, of sampled proposals and of dropout.
        start: what the model comes to as it is given; the guards are measured from it.
        validate: what the model as it stands comes to; called in evaluation mode.
        mask_seen: items of a history are not proposed, as where the model is evaluated and served.
        horizon: how many items that followed a prompt rewards see.
        checkpoint_dir: where the state after each validation is kept; a fit found there is continued, if it was begun
            with the same model, prompts, settings and seed: nothing here checks.
        log: receives (tag, value, step) scalars, `align/...`, every tenth update.
        ranks: the processes that tune the model together, without `reasoning`. All make this very call, `validate` must
            give all of them the same, and what is logged of the loss is the mean over them.

    Raises:
        DataError: no prompts.
        RewardError: a reward is broken. What was kept so far stays in `checkpoint_dir`.
        ConfigError: a generator of the any-order shape; or, with `reasoning`, one that knows no words or reads too few.
    """
    if len(prompts) == 0:
        raise DataError("align: no prompts; the training sequences are empty or shorter than align.min_history")
    if len(prompts) < ranks.size:
        raise DataError(f"align: {len(prompts)} prompts for {ranks.size} processes; lower engine.processes")
    place(model, pick_device(config.device))
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    reference.body.precision = training_dtype(config.precision, model.learned.device)
    tuner: _Tuner[Any, Any]
    if config.reasoning is None:
        loss = GroupPolicyLoss(Policy(model), Policy(reference), config.policy, ranks)
        tuner = _Tuner(loss, model, prompts, rewards, config, seed, mask_seen, horizon, ranks)
    else:
        assert ranks.size == 1, "chains are not shared"
        asked, before = (ChainPolicy(each, config.reasoning) for each in (model, reference))
        chain_loss = ChainPolicyLoss(asked, before, config.policy, config.reasoning)
        tuner = _Tuner(chain_loss, model, prompts, rewards, config, seed, mask_seen, horizon, ranks)
    if rewards.needs_levels:
        # The reference is the same whenever a fit goes on, and so are the levels.
        rewards.fit_levels(tuner.reference_rollouts(number) for number in range(_LEVEL_BATCHES))
    checkpoint = Checkpoint(checkpoint_dir, ranks) if checkpoint_dir is not None else None
    best = {name: value.clone() for name, value in model.state_dict().items()}
    curve: list[dict[str, float]] = []
    if checkpoint is not None and (stored := checkpoint.load(model, tuner.optimizer)) is not None:
        best, curve = stored
    first = int(curve[-1]["steps"]) if curve else 0
    # Proposals that several updates share are not kept; a checkpoint always falls between two lots of them.
    every = -(-config.validate_every // config.policy.updates_per_rollout) * config.policy.updates_per_rollout
    health: list[dict[str, float]] = []
    with progress_bar("align", total=config.updates) as advance:
        advance(first, "")
        for update in range(first, config.updates):
            scores = [start.ndcg, *(entry["ndcg@10"] if entry["kept"] else -1.0 for entry in curve)]
            if in_vain(scores, config.patience):
                break
            health.append(tuner.update(update))
            if update % _LOG_EVERY == 0:
                for name, value in health[-1].items():
                    log(f"align/{name}", value, update)
            advance(1, f"reward {health[-1]['reward']:.3f}")
            if (update + 1) % every and update + 1 != config.updates:
                continue
            model.eval()
            served = validate()
            legality = tuner.legality()
            entry = _entry(update + 1, served, start, config, health) | {"legality": legality}
            log("align/legality", legality, update + 1)
            log("validation/ndcg@10", served.ndcg, update + 1)
            if entry["kept"] and served.ndcg > max([start.ndcg, *(past["ndcg@10"] for past in curve if past["kept"])]):
                best = {name: value.clone() for name, value in model.state_dict().items()}
            curve.append(entry)
            health = []
            if checkpoint is not None:
                checkpoint.save(model, best, tuner.optimizer, curve)
    restore(model, best)
    model.eval()
    kept = [entry for entry in curve if entry["kept"] and entry["ndcg@10"] > start.ndcg]
    best_update = int(max(kept, key=lambda entry: entry["ndcg@10"])["steps"]) if kept else 0
    raised = alarms(curve[-1], curve[0], model.trie.num_levels, over_vocabulary=config.policy.normalise == "vocabulary")
    for line in raised:
        console.print(f"align: {line}", style="yellow", highlight=False)
    return GroupPolicyResult(curve=curve, alarms=raised, best_update=best_update)


def _entry(
    steps: int, served: Served, start: Served, config: GroupPolicyFitConfig, health: list[dict[str, float]]
) -> dict[str, float]:
    kept = (
        served.coverage >= config.min_coverage * start.coverage
        and served.recall_at_50 >= config.min_tail_recall * start.recall_at_50
        and served.popularity <= config.max_popularity * start.popularity
    )
    means = {name: float(np.mean([entry[name] for entry in health])) for name in health[0]}
    return means | {
        "steps": float(steps),
        "ndcg@10": served.ndcg,
        "recall@50": served.recall_at_50,
        "coverage": served.coverage,
        "popularity": served.popularity,
        "kept": float(kept),
    }


class _Tuner(Generic[S, J]):
    """What stays the same from update to update."""

    def __init__(
        self,
        objective: Objective[S, J],
        model: GeneratorModel,
        prompts: Prompts,
        rewards: Rewards,
        config: GroupPolicyFitConfig,
        seed: int,
        mask_seen: bool,
        horizon: int,
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self._objective = objective
        self._prompts = prompts
        self._rewards = rewards
        self._config = config
        self._seed = seed
        self._mask_seen = mask_seen
        self._horizon = horizon
        self._model = model
        self._dtype = training_dtype(config.precision, model.learned.device)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self._judged: J | None = None

    def update(self, number: int) -> dict[str, float]:
        """Take update `number` (from 0); its health."""
        config = self._config
        rollout, step = divmod(number, config.policy.updates_per_rollout)
        if step == 0 or self._judged is None:
            self._judged = self._judge(rollout)
        torch.manual_seed(self._ranks.seed(int(np.random.default_rng([self._seed, number]).integers(2**62))))
        self._model.train(config.dropout)
        self.optimizer.zero_grad(set_to_none=True)
        with multiplied_in(self._dtype, self._model.body):
            health = self._objective.learn(self._judged, is_first=step == 0)
        norm = nn.utils.clip_grad_norm_(self._trained, config.max_grad_norm)
        factor = learning_rate_factor((number + 1) / (config.updates + 1), config.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self.optimizer.step()
        means = [value / self._ranks.size for value in self._ranks.sums(list(health.values()))]
        return dict(zip(health, means, strict=True)) | {"gradient_norm": float(norm)}

    def legality(self) -> float:
        """Unconstrained legality of what was proposed last, under the policy as it stands."""
        assert self._judged is not None, "an update was taken"
        return self._ranks.sums([self._objective.legality(self._judged)])[0] / self._ranks.size

    def reference_rollouts(self, rollout: int) -> Rollouts:
        """What the supervised model proposes for all prompts of a rollout."""
        return self._proposed(rollout, self._numbers(rollout), by_reference=True).rollouts

    def _proposed(self, rollout: int, numbers: IntArray, *, by_reference: bool = False) -> S:
        chosen = self._prompts.select(numbers)
        stream = [self._seed, 1, rollout] if self._ranks.leads else [self._seed, 1, rollout, self._ranks.rank]
        with multiplied_in(self._dtype, self._model.body):
            return self._objective.propose(
                chosen.histories(),
                futures=chosen.futures(self._horizon),
                mask_seen=self._mask_seen,
                random=np.random.default_rng(stream),
                by_reference=by_reference,
            )

    def _judge(self, rollout: int) -> J:
        numbers = self._numbers(rollout)
        numbers = numbers[self._ranks.part(len(numbers))]
        sampled = self._proposed(rollout, numbers)
        reference = None
        if self._rewards.needs_levels and self._objective.levels_by_history:
            reference = self._proposed(rollout, numbers, by_reference=True).rollouts
        values = self._rewards(sampled.rollouts, reference=reference)
        with multiplied_in(self._dtype, self._model.body):
            judged = self._objective.judge(sampled, values.total)
        terms = {f"reward_{name}": mean for name, mean in values.means().items() if name != "total"}
        judged.health.update(terms)
        return judged

    def _numbers(self, rollout: int) -> IntArray:
        """The prompts of a rollout: passes over all of them, each in an order of its own."""
        # At least one for each process.
        size = min(max(self._config.batch_prompts, self._ranks.size), len(self._prompts))
        a_pass = len(self._prompts) // size
        order = np.random.default_rng([self._seed, 2, rollout // a_pass]).permutation(len(self._prompts))
        begin = rollout % a_pass * size
        return order[begin : begin + size]
