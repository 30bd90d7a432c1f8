"""Fits a generator: the loop, its schedule, early stopping and exact resume. Knows no runs, no stages, no metrics.

Each epoch seeds its own random numbers from (seed, epoch), so that a fit resumed after any epoch is bit for bit the
fit that was never stopped. Several processes fit one model on the same batches, each on its part of every one; with
dropout, of which each draws its own, they come to other weights than one process does, without it to the same up to
rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from recsys.config import StrictConfig
from recsys.data.sequences import Sequences
from recsys.evaluation.baselines.sasrec_model import pick_device
from recsys.generator.placement import place
from recsys.generator.recommender import GeneratorModel
from recsys.progress import progress_bar
from recsys.ranks import ALONE, Ranks
from training.checkpoints import Checkpoint, learned_state, restore
from training.objectives import BatchLoss, Objective, WindowObjective
from training.precision import Precision, multiplied_in, training_dtype
from training.shares import SharedLoss, gather_weights
from training.throughput import StepCost, Throughput


class FitConfig(StrictConfig):
    """How the model is fitted: AdamW, cosine decay after a linear warm-up, early stopping on NDCG@10."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training sequences; the cosine schedule ends here."""
    max_users: int | None = Field(default=None, ge=1, exclude_if=lambda count: count is None)
    """At most so many users' training sequences are learned from, a random sample by the run's seed; all when not
    given."""
    batch_positions: int = Field(default=2048, ge=1)
    """Item positions a step, padding included."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay on matrices; embeddings, norms and biases have none."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target mass spread evenly over the legal children of each level."""
    validate_every: int = Field(default=1, ge=1)
    """Epochs between two validations; a checkpoint is written after each epoch."""
    validation_users: int = Field(default=4000, ge=1)
    """At most so many validation cases are ranked (a fixed random sample)."""
    validation_beams: int = Field(default=20, ge=1)
    """Beams of the validation search."""
    patience: int = Field(default=4, ge=1)
    """Stop after so many validations without a better NDCG@10; the best weights are kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is a device, else the CPU."""
    precision: Precision = "auto"
    """Of the matrix products; `auto`: bfloat16 on a GPU that multiplies it natively, else float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a fit leaves beside the model's weights, which are those of the best validation."""

    curve: list[dict[str, float]]
    """One entry an epoch: `epoch` and `steps` so far, `loss` (nats an item), and `ndcg@10` where it was validated."""
    best_epoch: int
    """The epoch whose weights were kept, from 1."""


def build_optimizer(model: GeneratorModel, config: FitConfig, body_rate: float = 1.0) -> torch.optim.AdamW:
    """AdamW with groups with weight decay and without, and the body apart where its learning rate is another one.

    Each group says in `share` which share of the learning rate is its own.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    body = {id(p) for p in model.body.parameters()} if body_rate != 1.0 else set()
    groups = []
    for share, inside in ((1.0, False), (body_rate, True)):
        trained = [p for p in model.parameters() if p.requires_grad and (id(p) in body) == inside]
        decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
        chosen = {id(p) for p in decayed}
        others = [p for p in trained if id(p) not in chosen]
        groups += [
            {"params": params, "weight_decay": decay, "share": share}
            for params, decay in ((decayed, config.weight_decay), (others, 0.0))
            if params or not inside
        ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate_factor(progress: float, warmup_share: float) -> float:
    """Linear warm-up, then cosine decay to 0; a factor of the peak rate at `progress` in [0, 1) of the fit."""
    if progress < warmup_share:
        return progress / warmup_share
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_share) / (1 - warmup_share)))


def fit_generator(
    model: GeneratorModel,
    train: Sequences,
    config: FitConfig,
    *,
    seed: int,
    validate: Callable[[], float],
    checkpoint_dir: Path | None = None,
    log: Callable[[str, float, int], None] = lambda tag, value, step: None,
    objective: Callable[[GeneratorModel], Objective] | None = None,
    body_rate: float = 1.0,
    ranks: Ranks = ALONE,
) -> FitResult:
    """Fit `model` in place on `train` by the mean negative log-likelihood of items under the trie.

    Args:
        model: a generator with fresh weights; moved to the configured device, where it stays.
        train: training sequences only.
        config: the schedule.
        seed: of batch order and dropout.
        validate: NDCG@10 of the model as it stands on validation cases; called in eval mode.
        checkpoint_dir: where the state after each epoch is kept; a fit found there is continued. It must have been
            started with the same model, sequences, settings and seed: the caller guarantees it, nothing here checks.
        log: receives (tag, value, step) scalars.
        objective: where the batches of a model come from; None = windows of `train`.
        body_rate: learning rate of the body's own weights, as a share of the configured one.
        ranks: the processes that fit the model together. All make this very call, and `validate` must give all of them
            the same. `log` is called by all.

    Returns:
        The curve; the model holds the weights of the best validation.
    """

    def windows(model: GeneratorModel) -> Objective:
        return WindowObjective(model, train, config.batch_positions, config.label_smoothing)

    make_objective = windows if objective is None else objective
    place(model, pick_device(config.device))
    # Split weights can only be fitted; validation, and whoever serves, reads a model with all of them.
    fitted = copy.deepcopy(model) if ranks.size > 1 and ranks.sharded else model
    if config.gradient_checkpointing:
        fitted.body.transformer.activation_checkpointing_enable({"use_reentrant": False})
    fit = _Fit(
        model=fitted,
        objective=make_objective(fitted),
        config=config,
        seed=seed,
        log=log,
        body_rate=body_rate,
        ranks=ranks,
    )
    if fitted is not model:
        make_objective(model)  # which may set what the model is asked with
    checkpoint = Checkpoint(checkpoint_dir, ranks) if checkpoint_dir is not None else None
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    restored = checkpoint.load(fitted, fit.optimizer) if checkpoint is not None else None
    if restored is not None:
        best, curve = restored
    batches = fit.begin_epoch(len(curve)) if _goes_on(curve, config) else []
    # Only packing tells how long an epoch is; the first one stands for all.
    epoch_units = sum(map(fit.objective.units, batches))
    with progress_bar("train", total=config.epochs * epoch_units) as advance:
        advance(len(curve) * epoch_units, "")
        while _goes_on(curve, config):
            epoch, first_step = len(curve), int(curve[-1]["steps"]) if curve else 0
            if not batches:
                batches = fit.begin_epoch(epoch)
            entry = fit.run_epoch(epoch, batches, first_step=first_step, advance=advance)
            batches = []
            if (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs:
                fitted.eval()
                model.eval()
                if fitted is not model:
                    gather_weights(fitted, model)
                entry["ndcg@10"] = validate()
                log("validation/ndcg@10", entry["ndcg@10"], int(entry["steps"]))
                if entry["ndcg@10"] > max((past.get("ndcg@10", -1.0) for past in curve), default=-1.0):
                    best = {name: value.clone() for name, value in learned_state(fitted).items()}
            curve.append(entry)
            if checkpoint is not None:
                checkpoint.save(fitted, best, fit.optimizer, curve)
    restore(fitted, best)
    if fitted is not model:
        gather_weights(fitted, model)
    if config.gradient_checkpointing:
        fitted.body.transformer.activation_checkpointing_disable()
    model.eval()
    best_entry = max((entry for entry in curve if "ndcg@10" in entry), key=lambda entry: entry["ndcg@10"])
    return FitResult(curve=curve, best_epoch=int(best_entry["epoch"]))


def in_vain(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` validations brought nothing better than those before them."""
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def _goes_on(curve: list[dict[str, float]], config: FitConfig) -> bool:
    scores = [entry["ndcg@10"] for entry in curve if "ndcg@10" in entry]
    return len(curve) < config.epochs and not in_vain(scores, config.patience)


class _Fit:
    """What stays the same from epoch to epoch."""

    def __init__(
        self,
        *,
        model: GeneratorModel,
        objective: Objective,
        config: FitConfig,
        seed: int,
        log: Callable[[str, float, int], None],
        body_rate: float,
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.objective = objective
        self.config = config
        self.seed = seed
        self.log = log
        self.ranks = ranks
        self.dtype = training_dtype(config.precision, model.learned.device)
        self.shared_loss = SharedLoss(model, objective, ranks)
        # After it: what the optimizer takes are the weights that it may have split.
        self.optimizer = build_optimizer(model, config, body_rate)
        self.cost = StepCost.of(model.body)

    def begin_epoch(self, epoch: int) -> Sequence[Any]:
        """The batches of an epoch (numbered from 0), whose random numbers begin here."""
        random = np.random.default_rng([self.seed, epoch])
        torch.manual_seed(self.ranks.seed(int(random.integers(2**62))))
        # Before the objective's turn, which may want the model without dropout for all of the epoch.
        self.model.train()
        return self.objective.epoch(epoch, random)

    def run_epoch(
        self, epoch: int, batches: Sequence[Any], first_step: int, advance: Callable[[int, str], None]
    ) -> dict[str, float]:
        """Train on an epoch that has begun; the curve's entry, with the steps taken since the fit began."""
        total_loss = 0.0
        total_targets = 0
        meter = Throughput(self.cost, self.log)
        for index, batch in enumerate(batches):
            # The end of the step, so that the first one is taken at more than nothing.
            progress = (epoch + (index + 1) / (len(batches) + 1)) / self.config.epochs
            for group in self.optimizer.param_groups:
                factor = learning_rate_factor(progress, self.config.warmup_share)
                group["lr"] = self.config.learning_rate * group["share"] * factor
            loss = self._step(batch)
            total_loss += loss.item_loss * loss.num_items
            total_targets += loss.num_items
            if loss.num_items:
                self.log("train/loss", loss.item_loss, first_step + index)
            meter.count(loss, first_step + index)
            advance(self.objective.units(batch), f"epoch {epoch + 1} loss {total_loss / max(1, total_targets):.3f}")
        meter.report(first_step + len(batches) - 1)
        return {
            "epoch": float(epoch + 1),
            "steps": float(first_step + len(batches)),
            "loss": total_loss / max(1, total_targets),
        }

    def _step(self, batch: Any) -> BatchLoss:
        self.optimizer.zero_grad(set_to_none=True)
        with multiplied_in(self.dtype, self.model.body):
            found = self.shared_loss.backward(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return found
