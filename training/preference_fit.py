"""Tunes a generator on preference pairs of items, against a frozen copy of itself. Knows no runs and no metrics.

The loop is that of `training.fit`, exact resume included; this module is where its batches and their loss come from.

Shapes: P pairs of the table, B of a batch, W = 1 + R answers a pair (chosen first, then rejected, padded).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recsys.alignment.bco import RewardShift
from recsys.alignment.builders.beams import beam_negatives
from recsys.alignment.candidates import PolicyModel, candidate_log_probs, head_log_probs, policy_model
from recsys.alignment.losses import (
    LossConfig,
    PairLogProbs,
    objective_heads_loss,
    pair_metrics,
    preference_loss,
    select_pairs,
)
from recsys.alignment.pairs import OBJECTIVES, PreferencePairs
from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.data.windows import pad_right
from recsys.errors import ConfigError, DataError
from recsys.evaluation.baselines.sasrec_model import pick_device
from recsys.generator.depth import DepthHeads
from recsys.generator.nested import NestedModel
from recsys.generator.placement import place
from recsys.generator.recommender import GenerativeRecommender
from recsys.ranks import Ranks
from training.fit import FitConfig, fit_generator
from training.objectives import BatchLoss, causal_pairs
from training.precision import Precision, training_dtype

_LOG_EVERY = 10
"""Steps between two entries of the log."""
_POOL = 16
"""Batches that are sorted by length together, so that little is padding and batches stay mixed."""


class PreferenceFitConfig(StrictConfig):
    """How a generator is tuned on pairs: AdamW, cosine decay after a linear warm-up, early stopping."""

    loss: LossConfig = LossConfig(name="sdpo", beta=1.0, sft_weight=0.1)
    """The loss over pairs; its own keys replace these, so `loss: {name: dpo}` has no anchor unless it says so."""
    negatives: Literal["table", "random", "beam"] = "beam"
    """Rejected items: `table`: those of the pairs; `random`: drawn anew from the catalogue each epoch; `beam`: the best
    wrong items of the policy's own search, anew each epoch. The last two read prompts and chosen items only."""
    num_negatives: int = Field(default=3, ge=1)
    """Rejected items a pair that are drawn or searched."""
    beams: int = Field(default=10, ge=1)
    """Width of the search for negatives."""
    stop_share: float = Field(default=0.6, gt=0, le=1)
    """With `beam`: no more steps once so large a share of the chosen items comes first in the policy's own lists."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the pairs; the cosine schedule ends here."""
    batch_pairs: int = Field(default=128, ge=1)
    """Pairs a step."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate: far below that of the fit, or ranking suffers; 1e-5 for language models."""
    body_rate: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of the body's own weights, as a share of it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay on matrices."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    patience: int = Field(default=2, ge=1)
    """Stop after so many epochs without a better validation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is a device, else the CPU."""
    precision: Precision = Field(default="auto", exclude_if=lambda precision: bool(precision == "auto"))
    """Of the matrix products; `auto`: bfloat16 on a GPU that multiplies it natively, else float32."""

    @model_validator(mode="after")
    def _grades_come_with_the_table(self) -> PreferenceFitConfig:
        if self.negatives != "table" and (self.loss.name in ("lipo", "pro", "cream") or self.loss.margin_scale > 0):
            wanted = "loss.margin_scale" if self.loss.margin_scale > 0 else f"loss.name={self.loss.name}"
            raise ValueError(f"{wanted} reads what the pairs' table says of rejected answers; set negatives: table")
        return self


@dataclass(frozen=True, kw_only=True)
class PreferenceFitResult:
    """What tuning leaves beside the weights, which are those of the best validation, the first one included."""

    curve: list[dict[str, float]]
    """One entry an epoch: `epoch`, `steps`, `loss` (of the pairs) and `ndcg@10` (what `validate` gave)."""
    start: float
    """What `validate` gave for the weights before tuning."""
    best_epoch: int
    """The epoch whose weights were kept, from 1; 0 when none was better than the start."""


def fit_preferences(
    recommender: GenerativeRecommender,
    pairs: PreferencePairs,
    config: PreferenceFitConfig,
    *,
    seed: int,
    validate: Callable[[], float],
    mask_seen: bool = False,
    heads_only: bool = False,
    checkpoint_dir: Path | None = None,
    log: Callable[[str, float, int], None] = lambda tag, value, step: None,
) -> PreferenceFitResult:
    """Tune the recommender's model in place on pairs of items; the reference is a copy of it as it is given.

    Policy and reference are compared without dropout and in the same precision, so that they differ by their weights
    only. In bfloat16 what a model says of an answer depends on what else is in the batch, by more than a step changes:
    there the reference reads each batch beside the policy, instead of all pairs once.

    A model with a head an objective (`GenerativeRecommender.with_objectives`) is tuned as MAH-DPO does: each pair by
    the head of its objective alone, the loss being the mean over objectives. What a mix of heads is worth depends on
    its weights, so there is no best epoch: the last one's weights are kept, and validated.

    Args:
        recommender: a trained generator of the nested or flat shape; its model is moved to the configured device.
        pairs: prompts and chosen items of training; with `negatives: table` the rejected ones too. Indices are those of
            the recommender's catalogue.
        config: loss, negatives and schedule.
        seed: of batch order and random negatives.
        validate: how good the model is as it stands, larger is better, for example NDCG@10 on validation cases; called
            before the first epoch and after each.
        mask_seen: search for negatives among items that are not in the history.
        heads_only: leave all weights that the heads of objectives share as they are.
        checkpoint_dir: where the state after each epoch is kept; a fit found there is continued bit for bit, if it was
            begun with the same model, pairs, settings and seed: nothing here checks.
        log: receives (tag, value, step) scalars: `train/...` of the loop and `preference/...` of `pair_metrics`, every
            tenth step, as `objective/novelty/...` too where heads have one, and
            `preference/first_share` each epoch with `negatives: beam`.

    Raises:
        DataError: no pairs of items, items outside the catalogue, or a column that the loss needs and the table lacks.
        ConfigError: a generator of the any-order shape; heads, and negatives that are not those of the table.
    """
    model = policy_model(recommender.model)
    by_objective = bool(recommender.objectives)
    if by_objective and config.negatives != "table":
        raise ConfigError(
            f"negatives={config.negatives} knows no objectives; a model with a head an objective reads negatives: table"
        )
    place(model, pick_device(config.device))
    reference = copy.deepcopy(model).eval()
    reference.body.precision = training_dtype(config.precision, model.learned.device)
    objective = _PairObjective(recommender, model, reference, pairs, config, mask_seen, log)
    model.eval()
    start = validate()
    schedule = FitConfig(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_share=config.warmup_share,
        max_grad_norm=config.max_grad_norm,
        validate_every=config.epochs if by_objective else 1,
        patience=config.patience,
        device=config.device,
        precision=config.precision,
    )
    with _frozen(_shared_weights(model) if by_objective and heads_only else ()):
        result = fit_generator(
            model,
            objective.prompts,
            schedule,
            seed=seed,
            validate=validate,
            checkpoint_dir=checkpoint_dir,
            log=log,
            objective=lambda _: objective,
            body_rate=config.body_rate,
        )
    best = max(entry["ndcg@10"] for entry in result.curve if "ndcg@10" in entry)
    if best > start or by_objective:
        return PreferenceFitResult(curve=result.curve, start=start, best_epoch=result.best_epoch)
    model.load_state_dict(reference.state_dict())
    return PreferenceFitResult(curve=result.curve, start=start, best_epoch=0)


def _shared_weights(model: PolicyModel) -> list[nn.Parameter]:
    """What is trained of the model beside its heads of objectives."""
    own = {id(weight) for weight in model.depth.parameters()} if isinstance(model, NestedModel) else set()
    return [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in own]


@contextmanager
def _frozen(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """What is compared."""

    items: IntArray
    """int64 [P, W]: chosen, then rejected items; the chosen one again on padding."""
    real: npt.NDArray[np.bool_]
    """bool [P, W]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged(_Answers):
    """What is compared, and what the reference says of it."""

    reference: npt.NDArray[np.float32] | None
    """float32 [P, W]: log-probabilities; None where the reference is to read each batch."""


class _PairObjective:
    """Batches of pairs, and the loss of one; see `training.objectives.Objective`."""

    def __init__(
        self,
        recommender: GenerativeRecommender,
        model: PolicyModel,
        reference: PolicyModel,
        pairs: PreferencePairs,
        config: PreferenceFitConfig,
        mask_seen: bool,
        log: Callable[[str, float, int], None],
    ) -> None:
        table = pairs.of_items()
        if len(table) == 0:
            raise DataError(f"pairs: none of {len(pairs)} pairs is one of items; a generator is tuned on items")
        table.check_items(len(recommender.codes))
        self._recommender = recommender
        self._model = model
        self._reference = reference
        self._config = config
        self._mask_seen = mask_seen
        self._log = log
        frame = table.frame
        recent = frame["prompt_items"].list.tail(model.config.max_history)
        self.prompts = Sequences.from_lists(recent.to_list())
        self._chosen = frame["chosen_item"].to_numpy().astype(np.int64)
        self._weights = torch.from_numpy(frame["weight"].to_numpy().astype(np.float32))
        if not (self._weights > 0).any():
            raise DataError("pairs: column 'weight' is 0 in all rows; no pair counts")
        self._rejected_prompts: list[list[list[int]]] = []
        self._grades: tuple[Tensor, Tensor] | None = None
        self._flips: Tensor | None = None
        self._owners = _owners(model, table)
        self._names = tuple(recommender.objectives)
        self._fixed: _Answers | None = None
        self._current: _Judged | None = None
        if config.negatives == "table":
            self._read_table(table)
        self._finished = False
        self._shift = RewardShift()
        self._step = 0

    def _read_table(self, table: PreferencePairs) -> None:
        """Everything about rejected answers."""
        frame = table.frame
        rejected = frame["rejected_items"].to_list()
        recent = pl.element().list.tail(self._model.config.max_history)
        histories = frame["rejected_prompts"].list.eval(recent).to_list()
        self._rejected_prompts = histories if any(histories) else []
        scores = frame["rejected_scores"].to_list()
        loss = self._config.loss
        if loss.name in ("lipo", "pro") or loss.margin_scale > 0:
            missing = frame["chosen_score"].null_count()
            if missing:
                raise DataError(
                    f"pairs: column 'chosen_score' has no value in {missing} of {len(frame)} rows: the loss needs it"
                )
            width = max(map(len, rejected))
            padded = np.zeros((len(frame), width), dtype=np.float32)
            for row, values in enumerate(scores):
                padded[row, : len(values)] = values
            self._grades = (
                torch.from_numpy(frame["chosen_score"].to_numpy().astype(np.float32)),
                torch.from_numpy(padded),
            )
        noise = frame["label_noise_prob"].to_numpy().astype(np.float32)
        if noise.any():
            self._flips = torch.from_numpy(noise)
        elif loss.name == "cream":
            raise DataError("pairs: column 'label_noise_prob' is 0 in all rows, and the loss cream reads it")
        padded_items = np.full((len(frame), max(map(len, rejected))), -1, dtype=np.int64)
        for row, items in enumerate(rejected):
            padded_items[row, : len(items)] = items
        self._fixed = _side_by_side(self._chosen, padded_items)

    # --- an epoch -----------------------------------------------------------------------------------------------------

    def epoch(self, number: int, random: np.random.Generator) -> Sequence[IntArray]:
        """Row numbers, by batch; none once the chosen items come first often enough."""
        self._model.eval()
        self._shift = RewardShift()
        answers = None if self._finished else self._answers(number, random)
        if answers is None:
            return []
        if self._config.loss.name == "kto":
            answers = _with_column(
                answers, np.roll(self._chosen, 1 + int(random.integers(max(1, len(self._chosen) - 1))))
            )
        # Answers of a table are the same in every epoch, and so is what the reference says of them.
        if self._current is None or self._current.items is not answers.items:
            self._current = self._judged(answers)
        rows = np.flatnonzero(answers.real[:, 1] & (self._weights.numpy() > 0))
        batches = self._batches(random.permutation(rows), random)
        self._step = number * len(batches)
        return batches

    def _answers(self, number: int, random: np.random.Generator) -> _Answers | None:
        config = self._config
        if self._fixed is not None:
            return self._fixed
        if config.negatives == "random":
            return _side_by_side(self._chosen, self._random_items(random))
        found = beam_negatives(
            self._recommender,
            self.prompts,
            self._chosen,
            count=config.num_negatives,
            beams=config.beams,
            mask_seen=self._mask_seen,
        )
        self._log("preference/first_share", found.first_share, number)
        self._finished = found.first_share >= config.stop_share
        return None if self._finished else _side_by_side(self._chosen, found.items)

    def _random_items(self, random: np.random.Generator) -> IntArray:
        """int64 [P, R]: learned items, none the chosen one and none twice in a row."""
        known = np.flatnonzero(self._model.learned.cpu().numpy())
        count = min(self._config.num_negatives, len(known) - 1)
        if count < 1:
            raise DataError("pairs: random negatives need a catalogue of at least 2 items")
        drawn = random.choice(known, (len(self._chosen), count))
        while True:
            beside = np.column_stack([self._chosen, drawn])
            same = beside[:, 1:, None] == beside[:, None, :]
            earlier = np.tri(count, count + 1, dtype=bool)
            clash = (same & earlier).any(2)
            if not clash.any():
                return drawn
            drawn[clash] = random.choice(known, int(clash.sum()))

    def _batches(self, order: IntArray, random: np.random.Generator) -> list[IntArray]:
        size = self._config.batch_pairs
        batches = []
        for begin in range(0, len(order), _POOL * size):
            pool = order[begin : begin + _POOL * size]
            pool = pool[np.argsort(self.prompts.lengths_of(pool), kind="stable")]
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        return [batches[index] for index in random.permutation(len(batches))]

    def units(self, batch: IntArray) -> int:
        """Pairs."""
        return len(batch)

    def part(self, batch: IntArray, ranks: Ranks) -> IntArray:
        """All of it: there are losses that compare the pairs of a batch with each other."""
        return batch

    # --- log-probabilities --------------------------------------------------------------------------------------------

    def _judged(self, answers: _Answers) -> _Judged:
        if self._reference.body.precision != torch.float32:
            return _Judged(items=answers.items, real=answers.real, reference=None)
        values = np.zeros(answers.items.shape, dtype=np.float32)
        rows = np.argsort(self.prompts.lengths, kind="stable")
        with torch.no_grad():
            for begin in range(0, len(rows), self._config.batch_pairs):
                part = rows[begin : begin + self._config.batch_pairs]
                values[part] = self._log_probs(self._reference, part, answers.items[part]).cpu().numpy()
        return _Judged(items=answers.items, real=answers.real, reference=values)

    def _log_probs(self, model: PolicyModel, rows: IntArray, items: IntArray) -> Tensor:
        """float32 [B, W] of `items` (int64 [B, W]) after the prompts of `rows`, or after prompts of their own."""
        prompts = self.prompts.select(rows)
        candidates = torch.from_numpy(items).to(model.learned.device)
        owners = None if self._owners is None else self._owners[rows].to(candidates.device)
        found = _after(model, prompts, candidates, owners)
        if not self._rejected_prompts:
            return found
        own = [(place, slot) for place, row in enumerate(rows) for slot in range(len(self._rejected_prompts[row]))]
        if not own:
            return found
        places, slots = (torch.tensor(part, device=candidates.device) for part in zip(*own, strict=True))
        others = Sequences.from_lists([self._rejected_prompts[rows[place]][slot] for place, slot in own])
        their_owners = None if owners is None else owners[places]
        theirs = _after(model, others, candidates[places, slots + 1].unsqueeze(1), their_owners).squeeze(1)
        return found.index_put((places, slots + 1), theirs)

    def _log_metrics(self, prefix: str, pairs: PairLogProbs) -> None:
        for name, value in pair_metrics(pairs, self._config.loss.beta).items():
            self._log(f"{prefix}/{name}", value, self._step)

    def loss(self, batch: IntArray) -> BatchLoss:
        """The configured loss of the pairs at `batch`."""
        answers = self._current
        assert answers is not None, "an epoch has begun"
        policy = self._log_probs(self._model, batch, answers.items[batch])
        device = policy.device
        if answers.reference is None:
            with torch.no_grad():
                reference = self._log_probs(self._reference, batch, answers.items[batch])
        else:
            reference = torch.from_numpy(answers.reference[batch]).to(device)
        real = torch.from_numpy(answers.real[batch]).to(device)
        mismatched = reference_mismatched = None
        if self._config.loss.name == "kto":
            mismatched, reference_mismatched = policy[:, -1], reference[:, -1]
            policy, reference, real = policy[:, :-1], reference[:, :-1], real[:, :-1]
        levels = float(self._model.trie.num_levels)
        grades = None if self._grades is None else tuple(table[batch].to(device) for table in self._grades)
        pairs = PairLogProbs(
            chosen=policy[:, 0],
            rejected=policy[:, 1:],
            reference_chosen=reference[:, 0],
            reference_rejected=reference[:, 1:],
            mask=real[:, 1:],
            chosen_length=torch.full_like(policy[:, 0], levels),
            rejected_length=torch.full_like(policy[:, 1:], levels),
            chosen_grade=None if grades is None else grades[0],
            rejected_grade=None if grades is None else grades[1],
            weights=self._weights[batch].to(device),
            flip_rate=None if self._flips is None else self._flips[batch].to(device),
            mismatched=mismatched,
            reference_mismatched=reference_mismatched,
        )
        if self._config.loss.name == "bco":
            pairs = replace(pairs, shift=self._shift.update(pairs, self._config.loss.beta))
        if self._owners is None:
            loss = preference_loss(pairs, self._config.loss)
        else:
            # Each pair was judged by its own head, which is all that the loss reads of it.
            heads = [pairs] * (int(self._owners.max()) + 1)
            loss = objective_heads_loss(heads, self._owners[batch].to(device), self._config.loss)
        if self._step % _LOG_EVERY == 0:
            self._log_metrics("preference", pairs)
            if self._owners is not None:
                owners = self._owners[batch].to(device)
                for number in sorted(set(owners.tolist())):
                    self._log_metrics(f"objective/{self._names[number]}", select_pairs(pairs, owners == number))
        self._step += 1
        lengths = self.prompts.lengths_of(batch)
        return BatchLoss(
            loss=loss,
            weight=float(len(batch)),
            item_loss=loss.item(),
            num_items=len(batch),
            num_rows=int(lengths.sum()) * self._model.rows_per_item,
            num_pairs=causal_pairs(lengths * self._model.rows_per_item),
        )


def _after(model: PolicyModel, prompts: Sequences, candidates: Tensor, owners: Tensor | None) -> Tensor:
    items = torch.from_numpy(pad_right(prompts.items, prompts.offsets[:-1], prompts.lengths)).to(candidates.device)
    lengths = torch.from_numpy(prompts.lengths).to(candidates.device)
    if owners is None:
        return candidate_log_probs(model, items, lengths, candidates)
    return head_log_probs(model, items, lengths, candidates, owners)


def _owners(model: PolicyModel, table: PreferencePairs) -> Tensor | None:
    """int64 [P], the head of each pair's objective; None for a model without heads of objectives.

    Raises:
        DataError: a pair about an objective that has no head, or a head that no pair is about.
    """
    if not isinstance(model, NestedModel) or not isinstance(model.depth, DepthHeads):
        return None
    names, present = model.depth.names, table.objectives()
    if missing := set(present) ^ set(names):
        raise DataError(
            f"pairs: there are pairs about {' and '.join(present)}, and heads for {' and '.join(names)}; "
            f"{min(missing)!r} needs both"
        )
    place = torch.tensor([names.index(name) if name in names else -1 for name in OBJECTIVES])
    return place[torch.from_numpy(table.frame["objective_id"].to_numpy().astype(np.int64))]


def _side_by_side(chosen: IntArray, rejected: IntArray) -> _Answers:
    """Answers from chosen [P] and rejected [P, R] items, -1 on padding."""
    items = np.column_stack([chosen, np.where(rejected >= 0, rejected, chosen[:, None])])
    return _Answers(items=items, real=np.column_stack([np.ones(len(chosen), dtype=bool), rejected >= 0]))


def _with_column(answers: _Answers, items: IntArray) -> _Answers:
    """The same with one more item [P] a pair, the last."""
    real = np.column_stack([answers.real, np.ones(len(items), dtype=bool)])
    return _Answers(items=np.column_stack([answers.items, items]), real=real)
