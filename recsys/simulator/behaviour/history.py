"""What a simulated user remembers: recency-weighted sums of item vectors, one for each speed of forgetting, and the
latest items themselves.

Shapes: B users, L decays, D columns of the item vectors, K latest items, S items of a session that still satiate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.baselines.counting import recency_weights
from recsys.simulator.behaviour.succession import LATEST

FloatArray = npt.NDArray[np.float32]

SATIATING = 3
"""The last choices of a session that one tires of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Memories:
    """Of B users."""

    sums: FloatArray
    """float32 [B, L, D]: of each history the sum of its items' vectors, each times `decay ** age`."""
    latest: IntArray
    """int64 [B, K]: the last items, oldest first, -1 where there are none."""

    def __len__(self) -> int:
        return len(self.latest)

    @classmethod
    def of(cls, histories: Sequences, vectors_VD: FloatArray, decays: Sequence[float]) -> Memories:
        """Of whole histories."""
        sums = [np.asarray(recency_weights(histories, len(vectors_VD), decay) @ vectors_VD) for decay in decays]
        places = histories.offsets[1:, None] + np.arange(-LATEST, 0)
        there = places >= histories.offsets[:-1, None]
        latest = np.full(places.shape, -1, dtype=np.int64)
        latest[there] = histories.items[places[there]]
        return cls(sums=np.stack(sums, axis=1).astype(np.float32), latest=latest)

    def select(self, rows: IntArray) -> Memories:
        """A copy of those of the users at `rows`."""
        return Memories(sums=self.sums[rows], latest=self.latest[rows])

    def add(self, rows: IntArray, items: IntArray, vectors_VD: FloatArray, decays: Sequence[float]) -> None:
        """Users at `rows` (each once) take one more item each, int64 of the same length: changed in place."""
        fading = np.asarray(decays, dtype=np.float32)[None, :, None]
        self.sums[rows] = self.sums[rows] * fading + vectors_VD[items][:, None, :]
        self.latest[rows] = np.concatenate([self.latest[rows, 1:], items[:, None]], axis=1)


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
