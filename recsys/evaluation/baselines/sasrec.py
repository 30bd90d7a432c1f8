"""SASRec as a baseline: fitting with a softmax over the catalogue, early stopping, ranking, saving.

Fitted on training sequences only; validation cases choose the epoch and never enter the loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.data.windows import cut_windows, pad_right
from recsys.errors import ArtifactError, DataError
from recsys.evaluation.baselines.ranking import FloatArray, rank_by_score
from recsys.evaluation.baselines.sasrec_model import SasRecModel, parameter_groups, pick_device, pick_dtype
from recsys.evaluation.baselines.softmax import linear_cross_entropy, sampled_cross_entropy
from recsys.evaluation.config import SasRecConfig
from recsys.evaluation.report import TrainingCurve
from recsys.files import atomic_directory
from recsys.progress import progress_bar

_SCORING_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class SasRecEpoch:
    """One point of the learning curve."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean cross-entropy over the supervised positions, in nats, with dropout on."""
    valid_ndcg: float | None
    """NDCG@10 on the validation cases; None when there are none."""


class SasRec:
    """The baseline: `fit`, then call as a `Ranker`."""

    def __init__(self, config: SasRecConfig | None = None, *, mask_seen: bool = True) -> None:
        self.config = config if config is not None else SasRecConfig()
        self.mask_seen = mask_seen
        self.curve: list[SasRecEpoch] = []
        self._model: SasRecModel | None = None

    def fit(self, train: Sequences, num_items: int, valid: Examples | None = None) -> Self:
        """Learn from `train`; keep the weights of the epoch with the best NDCG@10 on `valid`, else the last ones.

        Raises:
            DataError: no training sequence has two items.
        """
        config = self.config
        windows = _Batches(train, config.max_history)
        if len(windows) == 0:
            raise DataError(f"SASRec needs training sequences of at least 2 items; none of {len(train)} has them")
        order = np.random.default_rng(config.seed)
        device = pick_device(config.device)
        dtype = pick_dtype(config.precision, device)
        num_steps = config.epochs * math.ceil(len(windows) / config.batch_size)
        best, best_ndcg, stale = None, -1.0, 0
        self.curve = []
        # Weights and dropout draw from torch's global stream: seed a fork of it and leave the caller's alone.
        with torch.random.fork_rng(), progress_bar("SASRec", num_steps) as advance:
            torch.manual_seed(config.seed)
            model = SasRecModel(num_items, config).to(device)
            self._model = model
            optimizer = torch.optim.AdamW(
                parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98), fused=True
            )
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_then_cosine(config, num_steps))
            for epoch in range(1, config.epochs + 1):
                model.train()
                loss_sum, num_targets = 0.0, 0
                for items, targets in windows.epoch(config.batch_size, order):
                    loss, count = self._loss(model, items.to(device), targets.to(device), dtype)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    loss_sum += float(loss.detach()) * count
                    num_targets += count
                    advance(1, f"epoch {epoch}/{config.epochs}  best NDCG@10 {max(best_ndcg, 0.0):.4f}")
                ndcg = self._ndcg(valid) if valid is not None and len(valid) else None
                self.curve.append(SasRecEpoch(epoch=epoch, train_loss=loss_sum / num_targets, valid_ndcg=ndcg))
                if ndcg is None:
                    continue
                stale += 1
                if ndcg > best_ndcg:
                    best, best_ndcg, stale = _copy_of_weights(model), ndcg, 0
                if stale >= config.patience:
                    break
        if best is not None:
            model.load_state_dict(best)
        return self

    def _loss(self, model: SasRecModel, items_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
        supervised_BT = targets_BT >= 0
        with torch.autocast(items_BT.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            states_ND = model(items_BT)[supervised_BT].float()
        targets_N = targets_BT[supervised_BT]
        vectors_VD = model.item_vectors.weight
        if len(vectors_VD) <= self.config.full_softmax_up_to:
            return linear_cross_entropy(states_ND, vectors_VD, targets_N, dtype), len(targets_N)
        negatives = torch.randint(len(vectors_VD), (self.config.num_negatives,)).to(items_BT.device)
        return sampled_cross_entropy(states_ND, vectors_VD, targets_N, negatives), len(targets_N)

    def scores(self, histories: Sequences) -> FloatArray:
        """float32 [B, num_items]: logits of the next item; an empty history scores every item 0."""
        model = self._fitted()
        scores = torch.zeros(len(histories), model.item_vectors.num_embeddings)
        rows = np.flatnonzero(histories.lengths > 0)
        if len(rows):
            scores[torch.from_numpy(rows)] = self._next_item_logits(histories.select(rows)).cpu()
        return np.asarray(scores.numpy())

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        """Ranked lists int64 [B, k], best first, -1 where there are no more items."""
        return rank_by_score(self.scores(histories), k, seen=histories if self.mask_seen else None)

    @torch.no_grad()
    def _next_item_logits(self, histories: Sequences) -> Tensor:
        """float32 [B, V] on the model's device; no history is empty."""
        model = self._fitted().eval()
        kept = np.minimum(histories.lengths, self.config.max_history)
        starts = histories.offsets[1:] - kept
        device = model.item_vectors.weight.device
        states = model(torch.from_numpy(pad_right(histories.items, starts, kept)).to(device))
        last = states[torch.arange(len(kept), device=device), torch.from_numpy(kept - 1).to(device)]
        logits: Tensor = last @ model.item_vectors.weight.T
        return logits

    def _ndcg(self, cases: Examples) -> float:
        """NDCG@10 by the rank of the target among all items, without building lists."""
        # An empty history has no state to predict from; such cases cannot choose between epochs.
        rows = np.flatnonzero(cases.histories.lengths > 0)
        rows = rows[np.argsort(cases.histories.lengths_of(rows), kind="stable")]
        total = 0.0
        for begin in range(0, len(rows), _SCORING_BATCH):
            batch = cases.select(rows[begin : begin + _SCORING_BATCH])
            logits = self._next_item_logits(batch.histories)
            targets = torch.from_numpy(batch.targets).to(logits.device)[:, None]
            own = logits.gather(1, targets)
            if self.mask_seen:
                row = torch.from_numpy(np.repeat(np.arange(len(batch)), batch.histories.lengths))
                logits[row.to(logits.device), torch.from_numpy(batch.histories.items).to(logits.device)] = -torch.inf
            # A target that was masked away is no hit; otherwise its rank is one more than the items above it.
            reachable = logits.gather(1, targets).isfinite()[:, 0]
            ranks = (logits > own).sum(dim=1) + 1
            gains = torch.where(reachable & (ranks <= 10), 1 / torch.log2(ranks + 1.0), 0.0)
            total += float(gains.sum())
        return total / len(cases)

    def training_curve(self) -> TrainingCurve:
        """The fit's course by epoch, for a report."""
        series: dict[str, list[float | None]] = {"training loss": [point.train_loss for point in self.curve]}
        if any(point.valid_ndcg is not None for point in self.curve):
            series["validation NDCG@10"] = [point.valid_ndcg for point in self.curve]
        return TrainingCurve(x_label="epoch", x=[float(point.epoch) for point in self.curve], series=series)

    def save(self, directory: Path) -> None:
        """Write `model.safetensors` and `sasrec.json` (settings, catalogue size, learning curve)."""
        model = self._fitted()
        facts = {
            "config": self.config.model_dump(),
            "mask_seen": self.mask_seen,
            "num_items": model.item_vectors.num_embeddings,
            "curve": [asdict(point) for point in self.curve],
        }
        with atomic_directory(directory) as temporary:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()},
                temporary / "model.safetensors",
            )
            (temporary / "sasrec.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote. Raises ArtifactError when a file is missing or damaged."""
        try:
            facts = json.loads((directory / "sasrec.json").read_text())
            loaded = cls(SasRecConfig.model_validate(facts["config"]), mask_seen=bool(facts["mask_seen"]))
            loaded.curve = [SasRecEpoch(**point) for point in facts["curve"]]
            model = SasRecModel(int(facts["num_items"]), loaded.config)
            # Assigned, not copied: they stay maps of the file, one in memory for all processes that load it.
            model.load_state_dict(load_file(directory / "model.safetensors"), assign=True)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, ValidationError) as error:
            raise ArtifactError(f"cannot read the SASRec model in {directory}: {error}") from error
        loaded._model = model.to(pick_device(loaded.config.device))
        return loaded

    def _fitted(self) -> SasRecModel:
        if self._model is None:
            raise RuntimeError("SASRec is not fitted: call fit() or load() first")
        return self._model


class _Batches:
    """Inputs and targets of the training windows: input t of a window has the window's item t + 1 as its target."""

    def __init__(self, train: Sequences, max_history: int) -> None:
        windows = cut_windows(train, max_history + 1)
        usable = windows.lengths > 1
        self.items = train.items
        self.starts = windows.start[usable]
        self.lengths = windows.lengths[usable] - 1
        # Nothing predicts a sequence's first item.
        self.first_supervised = np.maximum(windows.first_target - windows.start - 1, 0)[usable]

    def __len__(self) -> int:
        return len(self.starts)

    def epoch(self, batch_size: int, order: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets, int64 [B, T], targets -1 where unsupervised; a new order at every call.

        Windows of similar length share a batch. They are sorted within pools of many batches, not over the whole
        epoch, so that a batch still mixes users.
        """
        shuffled = order.permutation(len(self))
        pool = 32 * batch_size
        batches = []
        for begin in range(0, len(shuffled), pool):
            rows = shuffled[begin : begin + pool]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            batches += [rows[index : index + batch_size] for index in range(0, len(rows), batch_size)]
        for index in order.permutation(len(batches)):
            rows = batches[index]
            inputs = torch.from_numpy(pad_right(self.items, self.starts[rows], self.lengths[rows]))
            targets = torch.from_numpy(pad_right(self.items, self.starts[rows] + 1, self.lengths[rows]))
            position = torch.arange(inputs.shape[1])
            outside = (position >= torch.from_numpy(self.lengths[rows])[:, None]) | (
                position < torch.from_numpy(self.first_supervised[rows])[:, None]
            )
            yield inputs, targets.masked_fill(outside, -1)


def _copy_of_weights(model: SasRecModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _warmup_then_cosine(config: SasRecConfig, num_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: up to 1 in a line, then down to 0 along a cosine."""
    warmup = max(1, round(config.warmup_fraction * num_steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return factor
