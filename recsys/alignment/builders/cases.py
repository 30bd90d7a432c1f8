"""Cases to make pairs of: what users took next, at places of the training sequences."""

from __future__ import annotations

import numpy as np

from recsys.data.sequences import Examples, Sequences


def sample_cases(train: Sequences, size: int, *, max_history: int, seed: int, min_history: int = 1) -> Examples:
    """At most `size` places of the training sequences, in their order; the same ones under the same seed.

    Args:
        train: training sequences only.
        size: how many.
        max_history: histories are cut to the most recent so many items.
        seed: of the sample.
        min_history: items before the target at least.
    """
    owner = np.repeat(np.arange(len(train)), train.lengths)
    place = np.arange(len(train.items)) - train.offsets[owner]
    rows = np.flatnonzero(place >= min_history)
    if len(rows) > size:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))
    begins = np.maximum(train.offsets[owner[rows]], rows - max_history)
    recent = [train.items[begin:end] for begin, end in zip(begins, rows, strict=True)]
    histories = Sequences.from_lists(recent, users=train.users[owner[rows]].tolist())
    return Examples(histories=histories, targets=train.items[rows])
