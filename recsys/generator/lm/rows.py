"""Examples as rows of a language model's input, and many of them in one rectangle. Knows no weights.

A row is a token of text, or a part of an item: an item takes `rows_per_item` rows (its codes in the flat shape, one row
in the nested shape). Sequences are packed: several stand one after another in a line of the rectangle, each with
positions of its own, so that next to nothing is padding and no sequence sees another.

Shapes: B lines, S rows of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.errors import ConfigError
from recsys.generator.lm.examples import Example, Items, Piece, UserTokens

_NONE = -1
_POOL = 1024
"""Sequences that are packed together: enough for lines to fill, and few enough for batches to stay mixed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """One sequence of S rows."""

    tokens: IntArray
    """int64 [S]: the token of text, or from the number of words on the row of a user's code; -1 on rows of items."""
    items: IntArray
    """int64 [S]: the item on its first row; -1 elsewhere."""
    is_target: np.ndarray
    """bool [S]: tokens of text and first rows of items that are to be learned."""
    is_history: bool = False
    """Whether the target items follow a history of their user and nothing else."""

    def __len__(self) -> int:
        return len(self.tokens)


class SequenceWriter:
    """Turns pieces into rows.

    Args:
        text_tokens: the tokens of a stretch of text, nothing added.
        end_of_text: the token that ends a response that ends in words.
        rows_per_item: rows of an item.
        max_rows: the longest sequence. Of longer ones the beginning of the prompt goes, or the end of the response if
            that is longer by itself; cuts are between items and tokens, and leave a user at the head where it is.
        user_tokens: the tokens of a user's codes; None where the model has none.
    """

    def __init__(
        self,
        text_tokens: Callable[[str], list[int]],
        end_of_text: int,
        rows_per_item: int,
        max_rows: int,
        user_tokens: Callable[[Sequence[int]], IntArray] | None = None,
    ) -> None:
        self._user_tokens = user_tokens
        self._text_tokens = text_tokens
        self._end_of_text = end_of_text
        self._rows_per_item = rows_per_item
        self._max_rows = max_rows

    def write(self, example: Example) -> Written:
        """Prompt and response; all of the response is a target."""
        prompt = self.read(example.prompt)
        response = self.read(example.response)
        if isinstance(example.response[-1], str):
            response = np.concatenate([response, [[self._end_of_text], [_NONE]]], axis=1)
        tokens, items = np.concatenate([prompt, response], axis=1)
        is_target = (np.arange(len(tokens)) >= prompt.shape[1]) & ((tokens >= 0) | (items >= 0))
        # Nothing stands before the first row, so nothing can predict it.
        is_target[0] = False
        rows = np.arange(len(tokens))
        if len(tokens) > self._max_rows:
            head = len(example.prompt[0].codes) if isinstance(example.prompt[0], UserTokens) else 0
            starts = np.flatnonzero((tokens >= 0) | (items >= 0))
            kept = starts[(starts >= head) & (head + len(tokens) - starts <= self._max_rows)]
            if len(kept) and kept[0] < prompt.shape[1]:
                rows = np.concatenate([rows[:head], rows[kept[0] :]])
            else:
                rows = rows[: starts[starts <= self._max_rows][-1]]
        return Written(
            tokens=tokens[rows],
            items=items[rows],
            is_target=is_target[rows],
            is_history=example.task == "next_item",
        )

    def read(self, pieces: Iterable[Piece]) -> IntArray:
        """int64 [2, S]: tokens and items of each row, see `Written`."""
        columns = [np.zeros((2, 0), dtype=np.int64)]
        for piece in pieces:
            if isinstance(piece, Items):
                block = np.full((2, len(piece.indices) * self._rows_per_item), _NONE, dtype=np.int64)
                block[1, :: self._rows_per_item] = piece.indices
            elif isinstance(piece, UserTokens):
                if self._user_tokens is None:
                    raise ConfigError(
                        "teach.tasks.user_tokens: this model has no semantic IDs of users; set it to false"
                    )
                users = self._user_tokens(piece.codes)
                block = np.stack([users, np.full_like(users, _NONE)])
            else:
                tokens = np.array(self._text_tokens(piece), dtype=np.int64)
                block = np.stack([tokens, np.full_like(tokens, _NONE)])
            columns.append(block)
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Sequences in a rectangle [B, S]; padding has neither token nor item, and is no target."""

    tokens: Tensor
    """int64 [B, S], see `Written`."""
    items: Tensor
    """int64 [B, S], see `Written`."""
    is_target: Tensor
    """bool [B, S], see `Written`."""
    positions: Tensor
    """int64 [B, S]: each row's place in its sequence; padding counts as one more sequence."""
    is_history: Tensor
    """bool [B, S], see `Written`."""
    rows: Tensor
    """int64 [B], on the CPU: how many rows of each line are not padding."""

    @property
    def num_rows(self) -> int:
        """Rows that are not padding."""
        return int(self.rows.sum())

    @property
    def num_pairs(self) -> int:
        """Pairs of such a row and one of its sequence that it sees, itself included."""
        is_row = torch.arange(self.positions.shape[1]) < self.rows.unsqueeze(1)
        return int((self.positions.cpu() + 1)[is_row].sum())

    def to(self, device: torch.device) -> Packed:
        """The same on `device`."""
        return Packed(
            tokens=self.tokens.to(device),
            items=self.items.to(device),
            is_target=self.is_target.to(device),
            positions=self.positions.to(device),
            is_history=self.is_history.to(device),
            rows=self.rows,
        )

    def lines(self, chosen: slice) -> Packed | None:
        """Some of the lines; None for none."""
        if len(self.tokens[chosen]) == 0:
            return None
        return Packed(
            tokens=self.tokens[chosen],
            items=self.items[chosen],
            is_target=self.is_target[chosen],
            positions=self.positions[chosen],
            is_history=self.is_history[chosen],
            rows=self.rows[chosen],
        )


def pack(sequences: Sequence[Written], line_rows: int) -> list[list[int]]:
    """Which sequences share a line of `line_rows` rows: first fit, longest first (at most 22 % above the optimum).

    Raises:
        ValueError: a sequence is longer than a line.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    if order and len(sequences[order[0]]) > line_rows:
        raise ValueError(f"line_rows={line_rows} is shorter than a sequence of {len(sequences[order[0]])} rows")
    lines: list[list[int]] = []
    free: list[int] = []
    for index in order:
        size = len(sequences[index])
        line = next((number for number, room in enumerate(free) if room >= size), None)
        if line is None:
            line = len(lines)
            lines.append([])
            free.append(line_rows)
        lines[line].append(index)
        free[line] -= size
    return lines


def rectangle(sequences: Sequence[Written], lines: Sequence[Sequence[int]]) -> Packed:
    """The sequences of each line one after another, padded to the longest line."""
    width = max(sum(len(sequences[index]) for index in line) for line in lines)
    shape = (len(lines), width)
    tokens, items = np.full(shape, _NONE, dtype=np.int64), np.full(shape, _NONE, dtype=np.int64)
    is_target, positions = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    is_history = np.zeros(shape, dtype=bool)
    for row, line in enumerate(lines):
        start = 0
        for index in line:
            sequence = sequences[index]
            end = start + len(sequence)
            tokens[row, start:end], items[row, start:end] = sequence.tokens, sequence.items
            is_target[row, start:end], positions[row, start:end] = sequence.is_target, np.arange(len(sequence))
            is_history[row, start:end] = sequence.is_history
            start = end
        positions[row, start:] = np.arange(width - start)
    return Packed(
        tokens=torch.from_numpy(tokens),
        items=torch.from_numpy(items),
        is_target=torch.from_numpy(is_target),
        positions=torch.from_numpy(positions),
        is_history=torch.from_numpy(is_history),
        rows=torch.tensor([sum(len(sequences[index]) for index in line) for line in lines]),
    )


def packed_batches(
    examples: Iterable[Example],
    writer: SequenceWriter,
    line_rows: int,
    lines_per_batch: int,
    random: np.random.Generator,
) -> Iterator[Packed]:
    """Batches of `lines_per_batch` lines (the last of a pool may have fewer) over all `examples`, read as they come."""
    stream = iter(examples)
    while pool := [writer.write(example) for example in islice(stream, _POOL)]:
        lines = pack(pool, line_rows)
        # Lines are filled longest first; batches must not be sorted by it.
        shuffled = [lines[index] for index in random.permutation(len(lines))]
        for begin in range(0, len(shuffled), lines_per_batch):
            yield rectangle(pool, shuffled[begin : begin + lines_per_batch])
