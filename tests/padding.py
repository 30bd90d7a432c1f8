"""Histories written as lists, in the form that models take."""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import torch
from torch import Tensor

from recsys.data.sequences import Sequences
from recsys.data.windows import pad_right


def padded(rows: Listing[Listing[int] | np.ndarray]) -> tuple[Tensor, Tensor]:
    """Items int64 [B, T], right-padded, and lengths int64 [B]."""
    sequences = Sequences.from_lists(rows)
    items = pad_right(sequences.items, sequences.offsets[:-1], sequences.lengths)
    return torch.from_numpy(items), torch.from_numpy(sequences.lengths)
