"""What a fit learns from: the batches of an epoch and the loss of one. Knows no optimizer and no schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.data.sequences import IntArray, Sequences
from recsys.data.windows import cut_windows
from recsys.errors import ConfigError
from recsys.generator.batches import epoch_batches, padded_windows
from recsys.generator.lm.curriculum import curriculum
from recsys.generator.lm.examples import Example
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.preference import PreferenceWeighting
from recsys.generator.lm.rows import Packed, packed_batches
from recsys.generator.lm.tasks import TaskMix
from recsys.generator.recommender import GeneratorModel
from recsys.ranks import Ranks
from training.teach import TeachConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchLoss:
    """What a step is made of."""

    loss: Tensor
    """Scalar, to be minimised: a mean."""
    weight: float
    """How much the mean is over; the means of a batch's parts, weighted by it, make that of the batch."""
    item_loss: float
    """Mean negative log-likelihood of the batch's target items, in nats; what curves show."""
    num_items: int
    """Target items."""
    num_rows: int
    """Rows that the body read, padding left out."""
    num_pairs: int
    """Pairs of such a row and one that it attends to, itself included."""

    def with_loss(self, loss: Tensor) -> BatchLoss:
        """The same with another loss."""
        return replace(self, loss=loss)


def causal_pairs(rows: Tensor | IntArray) -> int:
    """Pairs of a row and one that it attends to, itself included, in sequences of `rows` (int64 [B])."""
    return int((rows * (rows + 1)).sum()) // 2


class Objective(Protocol):
    """A source of batches for one model."""

    def epoch(self, number: int, random: np.random.Generator) -> Sequence[Any]:
        """The batches of an epoch (numbered from 0), in order."""

    def units(self, batch: Any) -> int:
        """How much of an epoch a batch is, for progress."""

    def part(self, batch: Any, ranks: Ranks) -> Any | None:
        """What of a batch is this process's to do, in the form of a batch; None where there is too little for all."""

    def loss(self, batch: Any) -> BatchLoss:
        """The loss of the model as it stands, of a batch or a part of one."""


class WindowObjective:
    """Items of a user's window, each given those before it: what a body trained from scratch learns."""

    def __init__(self, model: GeneratorModel, train: Sequences, batch_positions: int, smoothing: float) -> None:
        self._model = model
        self._train = train
        self._batch_positions = batch_positions
        self._smoothing = smoothing
        # One more than the model reads: the last item of a window is a target, never an input.
        self._windows = cut_windows(train, model.config.max_history + 1)

    def epoch(self, number: int, random: np.random.Generator) -> Sequence[IntArray]:
        """Window numbers, by batch."""
        return epoch_batches(self._windows, self._batch_positions, random)

    def units(self, batch: IntArray) -> int:
        """Windows."""
        return len(batch)

    def part(self, batch: IntArray, ranks: Ranks) -> IntArray | None:
        """Every so many-th window: those of a batch are sorted by length."""
        own = batch[ranks.part(len(batch))]
        return own if len(own) else None

    def loss(self, batch: IntArray) -> BatchLoss:
        """Mean over the target items."""
        items, lengths, first_target = padded_windows(self._train, self._windows, batch)
        device = self._model.learned.device
        log_probs = self._model.target_log_probs(
            items.to(device), lengths.to(device), first_target.to(device), self._smoothing
        )
        loss = -log_probs.mean()
        return BatchLoss(
            loss=loss,
            weight=float(len(log_probs)),
            item_loss=loss.item(),
            num_items=len(log_probs),
            num_rows=int(lengths.sum()) * self._model.rows_per_item,
            num_pairs=causal_pairs(lengths * self._model.rows_per_item),
        )


class TaskObjective:
    """Text and items of a mix of tasks: what a language model is taught.

    The loss is the mean over what is produced, token by token: a target item counts as its codes. An epoch with
    reasoning in it follows GREAM's curriculum (arXiv 2510.20815), in three shards.
    """

    def __init__(
        self, model: GeneratorModel, mix: TaskMix, config: TeachConfig, batch_rows: int, smoothing: float
    ) -> None:
        self._language = ItemLanguage.of(model)
        self._mix = mix
        self._config = config
        self._smoothing = smoothing
        if config.preference is not None and smoothing > 0:
            raise ConfigError("teach.preference weighs by true likelihoods; set fit.label_smoothing to 0")
        if config.line_rows > self._language.backbone.max_positions:
            raise ConfigError(
                f"teach.line_rows={config.line_rows}: the language model reads "
                f"{self._language.backbone.max_positions} positions; lower it"
            )
        # The served model is asked in the words that it is taught with.
        self._language.backbone.templates = mix.templates
        model.instruction.set(self._language.backbone.text_tokens(mix.templates.next_item_instruction))
        if model.users is not None:
            model.users.instruct(mix.templates.next_item_instruction)
        self._writer = self._language.writer(config.line_rows)
        self._lines_per_batch = max(1, batch_rows // config.line_rows)
        self._preference = (
            PreferenceWeighting(self._language, config.preference) if config.preference is not None else None
        )

    def epoch(self, number: int, random: np.random.Generator) -> Sequence[Packed]:
        """Packed lines, by batch."""
        if self._preference is not None:
            self._preference.forget()
        examples = self._mix.epoch(number)
        limit = self._config.steps_per_epoch
        if len(examples.numbers("reasoning")) == 0:
            return list(islice(self._packed(examples, random), limit))
        is_reasoning = np.zeros(len(examples), dtype=bool)
        is_reasoning[examples.numbers("reasoning")] = True
        alignment, reasoning = (
            list(self._packed((examples[int(row)] for row in np.flatnonzero(chosen)), random))
            for chosen in (~is_reasoning, is_reasoning)
        )
        shards = curriculum(len(alignment), len(reasoning), seed=int(random.integers(2**31)))
        steps = [(reasoning if step.reasoning else alignment)[step.number] for shard in shards for step in shard]
        if limit is not None and limit < len(steps):
            # A small budget takes steps from everywhere, so that what rises along the curriculum still does.
            steps = [steps[int(place)] for place in np.linspace(0, len(steps) - 1, limit)]
        return steps

    def _packed(self, examples: Iterable[Example], random: np.random.Generator) -> Iterator[Packed]:
        return packed_batches(examples, self._writer, self._config.line_rows, self._lines_per_batch, random)

    def units(self, batch: Packed) -> int:
        """Batches."""
        return 1

    def part(self, batch: Packed, ranks: Ranks) -> Packed | None:
        """Whole lines."""
        return batch.lines(ranks.part(len(batch.tokens)))

    def loss(self, batch: Packed) -> BatchLoss:
        """See the class. A part's targets of histories have weights of mean 1 by themselves."""
        found = self._language.target_log_probs(batch.to(self._language.device), self._smoothing)
        codes_per_item = self._language.model.trie.num_levels
        weights = torch.ones_like(found.items)
        if self._preference is not None:
            weights = self._preference.weights(found)
        text_weight = self._config.text_weight
        total = text_weight * found.text.sum() + (weights * found.items).sum()
        count = text_weight * len(found.text) + codes_per_item * len(found.items)
        return BatchLoss(
            loss=-total / max(1.0, count),
            weight=float(count),
            item_loss=-found.items.detach().mean().item() if len(found.items) else 0.0,
            num_items=len(found.items),
            num_rows=batch.num_rows,
            num_pairs=batch.num_pairs,
        )
