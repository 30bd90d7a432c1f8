"""The histories that a policy is asked about while it learns, and what is known to have followed.

Only training interactions are read: what comes after them is validation's and test's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data import IntArray, Sequences


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """Beginnings of training sequences: prompt i is the first `ends[i]` items of sequence `rows[i]`."""

    train: Sequences
    rows: IntArray
    """int64 [P]."""
    ends: IntArray
    """int64 [P], at least 1."""

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Prompts) -> Prompts:
        return Prompts(train=self.train, rows=np.append(self.rows, other.rows), ends=np.append(self.ends, other.ends))

    def select(self, numbers: IntArray) -> Prompts:
        """The prompts at `numbers` (int64), in that order."""
        return Prompts(train=self.train, rows=self.rows[numbers], ends=self.ends[numbers])

    def histories(self) -> Sequences:
        """The prompts as histories."""
        return Sequences.from_lists(
            [self.train[row][:end] for row, end in zip(self.rows, self.ends, strict=True)],
            users=self.train.users[self.rows].tolist(),
        )

    def futures(self, horizon: int) -> Tensor:
        """int64 [P, horizon]: what followed in training, the next one first; -1 where there is no more."""
        found = np.full((len(self), horizon), -1, dtype=np.int64)
        for place in range(horizon):
            there = np.flatnonzero(self.ends + place < self.train.lengths_of(self.rows))
            found[there, place] = self.train.items[self.train.offsets[self.rows[there]] + self.ends[there] + place]
        return torch.from_numpy(found)


def labelled_prompts(
    train: Sequences, *, min_history: int = 1, max_prompts: int | None = None, seed: int = 0
) -> Prompts:
    """Every beginning of at least `min_history` items that something followed; a random sample when there are more."""
    counts = np.maximum(train.lengths - min_history, 0)
    rows = np.repeat(np.arange(len(train)), counts)
    ends = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + min_history
    prompts = Prompts(train=train, rows=rows, ends=ends)
    if max_prompts is None or len(prompts) <= max_prompts:
        return prompts
    return prompts.select(np.sort(np.random.default_rng(seed).choice(len(prompts), max_prompts, replace=False)))


def current_prompts(train: Sequences) -> Prompts:
    """Every user's whole training history: what follows is not known, so that only rewards without labels judge."""
    rows = np.flatnonzero(train.lengths > 0)
    return Prompts(train=train, rows=rows, ends=train.lengths_of(rows))
