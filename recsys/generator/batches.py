"""From ragged histories to padded batches: windows of long sequences, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data.sequences import IntArray, Sequences


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Training windows: stretches `start .. end - 1` of a flat item array, supervised from `first_target` on."""

    start: IntArray
    end: IntArray
    first_target: IntArray

    def __len__(self) -> int:
        return len(self.start)


def make_windows(sequences: Sequences, max_items: int) -> Windows:
    """Cut every sequence into windows of at most `max_items`, so that each item is a target exactly once.

    Windows after the first start half a window early: their first half is context only, so that no target but a
    sequence's own beginning has less than half a window of history.
    """
    step = max(1, max_items // 2)
    rows = np.flatnonzero(sequences.lengths > 0)
    num_windows = 1 + -(-np.maximum(0, sequences.lengths[rows] - max_items) // step)
    sequence = np.repeat(rows, num_windows)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    start = sequences.offsets[sequence] + number * step
    return Windows(
        start=start,
        end=np.minimum(start + max_items, sequences.offsets[sequence + 1]),
        first_target=start + np.where(number > 0, max_items - step, 0),
    )


def epoch_batches(windows: Windows, positions: int, generator: np.random.Generator) -> list[IntArray]:
    """Window numbers in batches of similar length, shuffled within and among batches by `generator`.

    A batch holds at most `positions` positions, padding included (one window if that is longer), so that a step costs
    about the same time and memory whether it holds many short histories or a few long ones.
    """
    lengths = windows.end - windows.start
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


def pad(rows: list[IntArray], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-padded int64 [B, T] (padding 0) and lengths int64 [B]."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    padded = np.zeros((len(rows), width if width is not None else int(lengths.max(initial=0))), dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows) if rows else 0
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def padded_windows(sequences: Sequences, windows: Windows, rows: IntArray) -> tuple[Tensor, Tensor, Tensor]:
    """Items int64 [B, T], lengths int64 [B] and the number of leading items that are context only, int64 [B]."""
    items, lengths = pad([sequences.items[windows.start[row] : windows.end[row]] for row in rows])
    return items, lengths, torch.from_numpy(windows.first_target[rows] - windows.start[rows])


def history_batches(
    histories: Sequences, max_items: int, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
    """Yield (row numbers, items, lengths) of the most recent `max_items` of each history, similar lengths together."""
    lengths = np.minimum(histories.lengths, max_items)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        items, row_lengths = pad([histories[row][-max_items:] for row in rows])
        yield rows, items, row_lengths
