"""From ragged sequences to rectangles: windows of long sequences, and padding. Knows no models and no tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.data.sequences import IntArray, Sequences

_SHORT = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Stretches `start .. end - 1` of a flat item array, whose items from `first_target` on are to be predicted."""

    start: IntArray
    end: IntArray
    first_target: IntArray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> IntArray:
        """int64 [n]: items of each window."""
        return self.end - self.start


def cut_windows(sequences: Sequences, max_items: int) -> Windows:
    """Cut every sequence into windows of at most `max_items`, so that each item is a target exactly once.

    Windows begin half a window apart. In all but the first of a sequence the earlier half is context only, so that no
    target but those at a sequence's beginning has less than half a window of history.
    """
    step = max(1, max_items // 2)
    rows = np.flatnonzero(sequences.lengths > 0)
    num_windows = 1 + -(-np.maximum(0, sequences.lengths_of(rows) - max_items) // step)
    sequence = np.repeat(rows, num_windows)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    start = sequences.offsets[sequence] + number * step
    return Windows(
        start=start,
        end=np.minimum(start + max_items, sequences.offsets[sequence + 1]),
        first_target=start + np.where(number > 0, max_items - step, 0),
    )


def pad_right(items: IntArray, start: IntArray, lengths: IntArray) -> IntArray:
    """int64 [B, max length]: stretches of `lengths` (int64 [B]) of a flat array, padded on the right with item 0."""
    position = np.arange(int(lengths.max(initial=0)))
    inside = position < lengths[:, None]
    padded = np.zeros(inside.shape, dtype=np.int64)
    padded[inside] = items[(start[:, None] + position)[inside]]
    return padded


def similar_lengths(lengths: IntArray) -> list[IntArray]:
    """Row numbers by the power of two that their lengths (int64 [B]) do not exceed, short ones together.

    Histories are short with few exceptions, and padding them all to the longest one would be most of the work.
    """
    classes = np.ceil(np.log2(np.maximum(lengths, _SHORT))).astype(np.int64)
    return [np.flatnonzero(classes == one) for one in np.unique(classes)]
