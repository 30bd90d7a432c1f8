"""What a simulated user remembers: recency-weighted sums of item vectors, one for each speed of forgetting.

Shapes: B users, L decays, D columns of the item vectors, S items of a session that still satiate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.baselines.counting import recency_weights

FloatArray = npt.NDArray[np.float32]

SATIATING = 3
"""The last choices of a session that one tires of."""


def remembered(histories: Sequences, vectors_VD: FloatArray, decays: Sequence[float]) -> FloatArray:
    """float32 [B, L, D]: of each history the sum of its items' vectors, each times `decay ** age`."""
    return np.stack(
        [np.asarray(recency_weights(histories, len(vectors_VD), decay) @ vectors_VD) for decay in decays], axis=1
    ).astype(np.float32)


def unit_blocks(states: FloatArray, widths: Mapping[str, int]) -> FloatArray:
    """The same shape [..., D] with each block of columns of unit norm; a block of zeros stays."""
    unit = np.empty_like(states)
    begin = 0
    for width in widths.values():
        block = states[..., begin : begin + width]
        norms = np.sqrt(np.einsum("...d,...d->...", block, block))[..., None]
        unit[..., begin : begin + width] = block / np.where(norms > 0, norms, 1)
        begin += width
    return unit


def recent_mean(vectors_VD: FloatArray, recent_BS: IntArray) -> FloatArray:
    """float32 [B, D]: mean vector of the items there are among `recent_BS`, where -1 is none."""
    there = recent_BS >= 0
    total = np.einsum("bsd,bs->bd", vectors_VD[recent_BS], there.astype(np.float32))
    return np.asarray(total / np.maximum(there.sum(axis=1), 1)[:, None], dtype=np.float32)
