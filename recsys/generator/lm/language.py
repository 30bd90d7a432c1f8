"""A generator that reads and writes text and items in one sequence: likelihoods for training, reading, writing, search.

What follows what is the wording's business: after a prompt comes text until it ends, or an item. So a row of text is
scored against the words of the language model, and an item against the items of the catalogue under its trie, as it is
decoded; the two are never mixed in one softmax.

Shapes: B lines or sequences, S rows, D width, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.errors import ConfigError
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.flat import FlatModel
from recsys.generator.lm.backbone import Backbone
from recsys.generator.lm.examples import Piece
from recsys.generator.lm.rows import Packed, SequenceWriter
from recsys.generator.nested import NestedModel
from recsys.generator.tree_decoding import Prefix, read, read_on

LanguageShape: TypeAlias = FlatModel | NestedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetLogProbs:
    """What a batch is learned by."""

    text: Tensor
    """float32 [T]: log-probability of every target token of text, in the order of the rectangle's rows."""
    items: Tensor
    """float32 [I]: log-probability of every target item, in that order."""
    item_targets: Tensor
    """int64 [I]: those items."""
    is_history: Tensor
    """bool [I]: which of them follow a history of their user and nothing else."""


class ItemLanguage:
    """A view of a nested or flat model whose body is a language model.

    Raises:
        ConfigError: the body is none.
    """

    @classmethod
    def of(cls, model: LanguageShape | AnyOrderModel) -> ItemLanguage:
        """The view of a generator's model. Raises ConfigError when it knows no words."""
        if isinstance(model, AnyOrderModel):
            raise ConfigError("generator.model.shape any_order reads no text; set it to nested or flat, with lm")
        return cls(model)

    def __init__(self, model: LanguageShape) -> None:
        if not isinstance(model.body, Backbone):
            raise ConfigError("generator.model.lm is not set: a body trained from scratch knows no words; set it")
        self.model = model
        self.backbone = model.body

    def writer(self, max_rows: int) -> SequenceWriter:
        """Writes examples for this model."""
        users = self.model.users
        return SequenceWriter(
            self.backbone.text_tokens,
            self.backbone.end_of_text,
            self.model.rows_per_item,
            max_rows,
            None if users is None else lambda codes: self.num_words + users.numbers(codes),
        )

    @property
    def num_words(self) -> int:
        """Tokens of text; the numbers from here on are rows of users' codes."""
        return int(self.backbone.text_embeddings.num_embeddings)

    def inputs(self, tokens: Tensor, items: Tensor) -> Tensor:
        """float32 [B, S, D] of rows given as `Packed` gives them (int64 [B, S] both); zeros on padding."""
        embedded: Tensor = self.backbone.text_embeddings(tokens.clamp(min=0, max=self.num_words - 1))
        embedded = embedded * (tokens >= 0).unsqueeze(-1)
        of_users = (tokens.flatten() >= self.num_words).nonzero().squeeze(1)
        if len(of_users):
            assert self.model.users is not None, "the writer has looked"
            rows = self.model.users.embedding(tokens.flatten()[of_users] - self.num_words)
            embedded = embedded.flatten(0, 1).index_put((of_users,), rows.to(embedded)).view_as(embedded)
        at, places = _item_rows(items, self.model.rows_per_item)
        if len(at) == 0:
            return embedded
        item_rows = self.model.item_rows(items.flatten()[at]).flatten(0, 1)
        return embedded.flatten(0, 1).index_put((places.flatten(),), item_rows.to(embedded)).view_as(embedded)

    def target_log_probs(
        self, packed: Packed, smoothing: float = 0.0, *, over_vocabulary: bool = False
    ) -> TargetLogProbs:
        """Log-probabilities of all targets, each given all rows of its sequence before it.

        Args:
            packed: the sequences.
            smoothing: of items, see `likelihood.smoothed_gather`.
            over_vocabulary: of items, see `likelihood.path_log_probs`.
        """
        hidden = self.backbone(self.inputs(packed.tokens, packed.items), packed.positions).flatten(0, 1)
        tokens, items, is_target = packed.tokens.flatten(), packed.items.flatten(), packed.is_target.flatten()
        text_rows = (is_target & (tokens >= 0)).nonzero().squeeze(1)
        # The state of the row before, which is of the same sequence: a first row is never a target.
        logits = self.backbone.text_logits(_gather(hidden, text_rows - 1)).float()
        text = -torch.nn.functional.cross_entropy(logits, tokens[text_rows], reduction="none")
        at, rows = _item_rows(packed.items.masked_fill(~packed.is_target, -1), self.model.rows_per_item)
        states = _gather(hidden, rows.flatten() - 1).view(*rows.shape, hidden.shape[-1]).float()
        targets = items[at]
        log_probs = hidden.new_zeros(0)
        if len(at):
            log_probs = self.model.item_log_probs(states, targets, smoothing, over_vocabulary=over_vocabulary)
        return TargetLogProbs(
            text=text, items=log_probs, item_targets=targets, is_history=packed.is_history.flatten()[at]
        )

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[Piece]]) -> Prefix:
        """What the model makes of each prompt.

        Raises:
            ValueError: there is no prompt, or one is empty or longer than the model reads.
        """
        most = self.backbone.max_positions
        writer = self.writer(most)
        written = [torch.from_numpy(writer.read(prompt)) for prompt in prompts]
        sizes = [rows.shape[1] for rows in written]
        if not sizes or min(sizes) == 0 or max(sizes) > most:
            raise ValueError(f"prompts must be one or more of 1 to {most} rows each, got {sizes}")
        lengths = torch.tensor([rows.shape[1] for rows in written], device=self.device)
        padded = torch.full((2, len(written), int(lengths.max())), -1, dtype=torch.int64)
        for row, values in enumerate(written):
            padded[:, row, : values.shape[1]] = values
        tokens, items = padded.to(self.device)
        return read(self.backbone, self.inputs(tokens, items), lengths)

    @torch.inference_mode()
    def read_on(self, prefix: Prefix, pieces: Sequence[Piece]) -> Prefix:
        """Every sequence of `prefix` (of equal lengths) followed by `pieces`."""
        rows = torch.from_numpy(self.writer(self.backbone.max_positions).read(pieces)).to(self.device)
        inputs = self.inputs(*rows.unsqueeze(1)).expand(len(prefix.hidden), -1, -1)
        return read_on(self.backbone, prefix, inputs)

    def of_user(self, prompt: tuple[Piece, ...], history: IntArray) -> tuple[Piece, ...]:
        """A prompt about the user of `history` (int64, oldest first), as the model was taught to read it."""
        return prompt if self.model.users is None else self.model.users.head(prompt, history)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.learned.device


def _item_rows(items: Tensor, rows_per_item: int) -> tuple[Tensor, Tensor]:
    """Flat numbers of the first rows of items (int64 [I]) in a rectangle, and of all their rows (int64 [I, R])."""
    at = (items.flatten() >= 0).nonzero().squeeze(1)
    return at, at.unsqueeze(1) + torch.arange(rows_per_item, device=items.device)


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table. Not table[rows]: with several threads its gradient is summed in no fixed order."""
    return torch.nn.functional.embedding(rows, table)
