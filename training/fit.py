"""Fits a generator: the loop, its schedule, early stopping and exact resume. Knows no runs, no stages, no metrics.

Each epoch seeds its own random numbers from (seed, epoch), so that a fit resumed after any epoch is bit for bit the
fit that was never stopped. Checkpoints are safetensors and JSON.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.data.windows import cut_windows
from recsys.files import atomic_directory, write_json
from recsys.generator.batches import epoch_batches, padded_windows
from recsys.generator.recommender import GeneratorModel
from recsys.progress import progress_bar


class FitConfig(StrictConfig):
    """How the model is fitted: AdamW, cosine decay after a linear warm-up, early stopping on NDCG@10."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training sequences; the cosine schedule ends here."""
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
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


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate_factor(progress: float, warmup_share: float) -> float:
    """Linear warm-up, then cosine decay to 0; a factor of the peak rate at `progress` in [0, 1) of the fit."""
    if progress < warmup_share:
        return progress / warmup_share
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_share) / (1 - warmup_share)))


class _Checkpoint:
    """The state after an epoch: weights, best weights, Adam moments, and the curve so far.

    Each epoch has a directory of its own, `checkpoint-<epoch>`, and older ones go when it is there: a kill at any
    moment leaves the newest one whole.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(
        self,
        model: nn.Module,
        best: dict[str, Tensor],
        optimizer: torch.optim.AdamW,
        curve: list[dict[str, float]],
    ) -> None:
        moments = {
            f"{index}.{name}": value
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        older = self._by_epoch()
        with atomic_directory(self.directory / f"checkpoint-{len(curve)}") as target:
            save_file(dict(model.state_dict()), target / "model.safetensors")
            save_file(best, target / "best.safetensors")
            save_file(moments, target / "optimizer.safetensors")
            write_json(target / "curve.json", curve)
        for directory in older:
            shutil.rmtree(directory)

    def load(
        self, model: nn.Module, optimizer: torch.optim.AdamW
    ) -> tuple[dict[str, Tensor], list[dict[str, float]]] | None:
        checkpoints = self._by_epoch()
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        model.load_state_dict(load_file(newest / "model.safetensors"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(newest / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        curve: list[dict[str, float]] = json.loads((newest / "curve.json").read_text())
        return load_file(newest / "best.safetensors"), curve

    def _by_epoch(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.directory.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def fit_generator(
    model: GeneratorModel,
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
        checkpoint_dir: where the state after each epoch is kept; a fit found there is continued. It must have been
            started with the same model, sequences, settings and seed: the caller guarantees it, nothing here checks.
        log: receives (tag, value, step) scalars.

    Returns:
        The curve; the model holds the weights of the best validation.
    """
    fit = _Fit(model=model, train=train, config=config, seed=seed, log=log)
    checkpoint = _Checkpoint(checkpoint_dir) if checkpoint_dir is not None else None
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    restored = checkpoint.load(model, fit.optimizer) if checkpoint is not None else None
    if restored is not None:
        best, curve = restored
    with progress_bar("train", total=config.epochs * len(fit.windows)) as advance:
        advance(len(curve) * len(fit.windows), "")
        for epoch in range(len(curve), config.epochs):
            if _exhausted(curve, config.patience):
                break
            entry = fit.run_epoch(epoch, first_step=int(curve[-1]["steps"]) if curve else 0, advance=advance)
            if (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs:
                model.eval()
                entry["ndcg@10"] = validate()
                log("validation/ndcg@10", entry["ndcg@10"], int(entry["steps"]))
                if entry["ndcg@10"] > max((past.get("ndcg@10", -1.0) for past in curve), default=-1.0):
                    best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            curve.append(entry)
            if checkpoint is not None:
                checkpoint.save(model, best, fit.optimizer, curve)
    model.load_state_dict(best)
    model.eval()
    best_entry = max((entry for entry in curve if "ndcg@10" in entry), key=lambda entry: entry["ndcg@10"])
    return FitResult(curve=curve, best_epoch=int(best_entry["epoch"]))


def _exhausted(curve: list[dict[str, float]], patience: int) -> bool:
    scores = [entry["ndcg@10"] for entry in curve if "ndcg@10" in entry]
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


class _Fit:
    """What stays the same from epoch to epoch."""

    def __init__(
        self,
        *,
        model: GeneratorModel,
        train: Sequences,
        config: FitConfig,
        seed: int,
        log: Callable[[str, float, int], None],
    ) -> None:
        self.model = model
        self.train = train
        self.config = config
        self.seed = seed
        self.log = log
        # One more than the model reads: the last item of a window is a target, never an input.
        self.windows = cut_windows(train, model.config.max_history + 1)
        self.optimizer = _optimizer(model, config)

    def run_epoch(self, epoch: int, first_step: int, advance: Callable[[int, str], None]) -> dict[str, float]:
        """Train for one epoch (numbered from 0); the curve's entry, with the steps taken since the fit began."""
        self.model.train()
        random = np.random.default_rng([self.seed, epoch])
        torch.manual_seed(int(random.integers(2**62)))
        batches = epoch_batches(self.windows, self.config.batch_positions, random)
        total_loss = 0.0
        total_targets = 0
        for index, rows in enumerate(batches):
            # The end of the step, so that the first one is taken at more than nothing.
            progress = (epoch + (index + 1) / (len(batches) + 1)) / self.config.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * learning_rate_factor(progress, self.config.warmup_share)
            loss, num_targets = self._step(rows)
            total_loss += loss * num_targets
            total_targets += num_targets
            self.log("train/loss", loss, first_step + index)
            advance(len(rows), f"epoch {epoch + 1} loss {total_loss / total_targets:.3f}")
        return {
            "epoch": float(epoch + 1),
            "steps": float(first_step + len(batches)),
            "loss": total_loss / total_targets,
        }

    def _step(self, rows: IntArray) -> tuple[float, int]:
        items, lengths, first_target = padded_windows(self.train, self.windows, rows)
        log_probs = self.model.target_log_probs(items, lengths, first_target, self.config.label_smoothing)
        loss = -log_probs.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return loss.item(), len(log_probs)
