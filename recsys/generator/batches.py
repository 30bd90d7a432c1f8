"""Padded batches of similar length, for training and for recommending."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from recsys.data.sequences import IntArray, Sequences
from recsys.data.windows import Windows, pad_right


def epoch_batches(windows: Windows, positions: int, generator: np.random.Generator) -> list[IntArray]:
    """Window numbers in batches of similar length, shuffled within and among batches by `generator`.

    A batch holds at most `positions` positions, padding included (one window if that is longer), so that a step costs
    about the same time and memory whether it holds many short histories or a few long ones.
    """
    lengths = windows.lengths
    order = generator.permutation(len(windows))
    # Sorting whole epochs by length would make batches of one kind of user; sorting within big pools keeps them mixed.
    pool = max(1, 64 * positions // max(1, int(lengths.mean())))
    batches: list[IntArray] = []
    for begin in range(0, len(order), pool):
        members = order[begin : begin + pool]
        members = members[np.argsort(lengths[members], kind="stable")]
        first = 0
        while first < len(members):
            widest = min(first + positions // lengths[members[first]], len(members)) - 1
            count = max(1, positions // lengths[members[max(widest, first)]])
            batches.append(members[first : first + count])
            first += count
    return [batches[index] for index in generator.permutation(len(batches))]


def padded_windows(sequences: Sequences, windows: Windows, rows: IntArray) -> tuple[Tensor, Tensor, Tensor]:
    """Items int64 [B, T], lengths int64 [B] and the number of leading items that are context only, int64 [B]."""
    start = windows.start[rows]
    # `windows.lengths` would be those of all, at every step of a fit.
    lengths = windows.end[rows] - start
    items = pad_right(sequences.items, start, lengths)
    return torch.from_numpy(items), torch.from_numpy(lengths), torch.from_numpy(windows.first_target[rows] - start)


def history_batches(histories: Sequences, max_items: int, batch_size: int) -> Iterator[tuple[IntArray, Tensor, Tensor]]:
    """Yield (row numbers, items, lengths) of the most recent `max_items` of each history, similar lengths together."""
    lengths = np.minimum(histories.lengths, max_items)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        items = pad_right(histories.items, histories.offsets[rows + 1] - lengths[rows], lengths[rows])
        yield rows, torch.from_numpy(items), torch.from_numpy(lengths[rows])
