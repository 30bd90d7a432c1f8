"""Fits a generator: the loop, its schedule, early stopping and exact resume. Knows no runs, no stages, no metrics.

Each epoch seeds its own random numbers from (seed, epoch), so that a fit resumed after any epoch is bit for bit the
fit that was never stopped. Checkpoints are safetensors and JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.config import StrictConfig
from recsys.data.sequences import Sequences
from recsys.files import atomic_directory, write_json
from recsys.generator.batches import epoch_batches, make_windows, padded_windows
from recsys.generator.flat import FlatModel
from recsys.generator.nested import NestedModel
from recsys.progress import progress_bar

class FitConfig(StrictConfig):
    """How the model is fitted: AdamW, cosine decay after a linear warm-up, early stopping on NDCG@10."""

    epochs: int = Field(default=30, ge=1)
    """Passes over the training sequences; the cosine schedule ends here."""
    batch_size: int = Field(default=256, ge=1)
    """Sequences a step."""
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
    patience: int = Field(default=5, ge=1)
    """Stop after so many validations without a better NDCG@10; the best weights are kept."""



@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a fit leaves beside the model's weights, which are those of the best validation."""

    curve: list[dict[str, float]]
    """One entry an epoch: `epoch`, `loss` (nats an item), and `ndcg@10` where it was validated."""
    best_epoch: int
    """The epoch whose weights were kept, from 1."""


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate_factor(step: int, total_steps: int, warmup_share: float) -> float:
    """Linear warm-up, then cosine decay to 0; a factor of the peak rate for `step` in 0..total_steps - 1."""
    warmup = max(1, round(total_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


class _Checkpoint:
    """The state after an epoch: weights, best weights, Adam moments, and the curve so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "checkpoint"

    def save(
        self, model: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.AdamW, progress: dict[str, Any]
    ) -> None:
        moments = {
            f"{index}.{name}": value
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        with atomic_directory(self.directory) as target:
            save_file(dict(model.state_dict()), target / "model.safetensors")
            save_file(best, target / "best.safetensors")
            save_file(moments, target / "optimizer.safetensors")
            write_json(target / "progress.json", progress)

    def load(
        self, model: nn.Module, optimizer: torch.optim.AdamW
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not self.directory.exists():
            return None
        model.load_state_dict(load_file(self.directory / "model.safetensors"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(self.directory / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        progress: dict[str, Any] = json.loads((self.directory / "progress.json").read_text())
        return load_file(self.directory / "best.safetensors"), progress


def fit_generator(
    model: NestedModel | FlatModel,
    train: Sequences,
    config: FitConfig,
    *,
    seed: int,
    validate: Callable[[], float],
    checkpoint_dir: Path | None = None,
    log: Callable[[str, float, int], None] = lambda tag, value, step: None,
) -> FitResult:
    """Fit `model` in place on `train` by the mean negative log-likelihood of items under the trie.

    Args:
        model: a generator with fresh weights.
        train: training sequences only.
        config: the schedule.
        seed: of batch order and dropout.
        validate: NDCG@10 of the model as it stands on validation cases; called in eval mode.
        checkpoint_dir: where the state after each epoch is kept; a fit found there is continued.
        log: receives (tag, value, step) scalars.

    Returns:
        The curve; the model holds the weights of the best validation.
    """
    windows = make_windows(train, model.config.max_history + 1)
    steps_per_epoch = math.ceil(len(windows) / config.batch_size)
    optimizer = _optimizer(model, config)
    checkpoint = _Checkpoint(checkpoint_dir) if checkpoint_dir is not None else None
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    restored = checkpoint.load(model, optimizer) if checkpoint is not None else None
    if restored is not None:
        best, progress = restored
        curve = progress["curve"]

    with progress_bar("train", total=config.epochs * steps_per_epoch) as advance:
        advance(len(curve) * steps_per_epoch, "")
        for epoch in range(len(curve), config.epochs):
            if _exhausted(curve, config.patience):
                break
            entry = {"epoch": float(epoch + 1)}
            entry["loss"] = _train_epoch(
                model, optimizer, train, windows, config, epoch, steps_per_epoch, seed, advance, log
            )
            is_last = epoch + 1 == config.epochs
            if (epoch + 1) % config.validate_every == 0 or is_last:
                model.eval()
                entry["ndcg@10"] = validate()
                log("validation/ndcg@10", entry["ndcg@10"], (epoch + 1) * steps_per_epoch)
                if entry["ndcg@10"] > max((past.get("ndcg@10", -1.0) for past in curve), default=-1.0):
                    best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            curve.append(entry)
            if checkpoint is not None:
                checkpoint.save(model, best, optimizer, {"curve": curve})
    model.load_state_dict(best)
    model.eval()
    best_entry = max((entry for entry in curve if "ndcg@10" in entry), key=lambda entry: entry["ndcg@10"])
    return FitResult(curve=curve, best_epoch=int(best_entry["epoch"]))


def _exhausted(curve: list[dict[str, float]], patience: int) -> bool:
    scores = [entry["ndcg@10"] for entry in curve if "ndcg@10" in entry]
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def _train_epoch(
    model: NestedModel | FlatModel,
    optimizer: torch.optim.AdamW,
    train: Sequences,
    windows: Any,
    config: FitConfig,
    epoch: int,
    steps_per_epoch: int,
    seed: int,
    advance: Callable[[int, str], None],
    log: Callable[[str, float, int], None],
) -> float:
    model.train()
    order = np.random.default_rng([seed, epoch])
    torch.manual_seed(int(order.integers(2**62)))
    total_loss = 0.0
    total_targets = 0
    batches = epoch_batches(windows, config.batch_size, order)
    for index, rows in enumerate(batches):
        step = epoch * steps_per_epoch + index
        factor = learning_rate_factor(step, config.epochs * steps_per_epoch, config.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        items, lengths, first_target = padded_windows(train, windows, rows)
        log_probs = model.target_log_probs(items, lengths, first_target, config.label_smoothing)
        loss = -log_probs.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        total_loss += loss.item() * len(log_probs)
        total_targets += len(log_probs)
        log("train/loss", loss.item(), step)
        advance(1, f"epoch {epoch + 1} loss {total_loss / total_targets:.3f}")
    return total_loss / total_targets
