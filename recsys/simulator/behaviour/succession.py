"""What followed what in a log: direct evidence that two items go together. Knows no vectors and no weights.

Vectors of few columns blur what is known of rare items: that two of them were taken one after the other is hardly seen
in their cosine. Counts say it, and which of the two came first.

Shapes: B users, V items, S options, K latest items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.baselines.counting import transitions

FloatArray = npt.NDArray[np.float32]

LATEST = 5
"""K: so many places back, items of a history still say what follows; and so far a pair of the log is counted."""

_FADING = 0.6
"""What a place further counts for, both in the log and in the history."""


def successions(log: Sequences, num_items: int) -> sparse.csr_array:
    """float32 [V, V]: how often column came up to five places after row, a place further counting for less."""
    return transitions(log, num_items, LATEST, _FADING)


def succession_evidence(counts: sparse.csr_array, latest: IntArray, items: IntArray | None) -> FloatArray:
    """float32 [B, S]: log of one plus the counts of an option after the latest items, older ones counting for less.

    Args:
        counts: [V, V], of `successions`.
        latest: int64 [B, K], oldest first, -1 where there are none.
        items: int64 [B, S], -1 = anything; None for the whole catalogue, S = V.
    """
    fading = _FADING ** np.arange(latest.shape[1] - 1, -1, -1, dtype=np.float32)
    weights = np.where(latest >= 0, fading, np.float32(0)).astype(np.float32)
    if items is None:
        users, places = np.nonzero(latest >= 0)
        cells = (weights[users, places], (users, latest[users, places]))
        found = (sparse.csr_array(cells, shape=(len(latest), counts.shape[0])) @ counts).toarray()
    else:
        found = np.zeros(items.shape, dtype=np.float32)
        for before, weight in zip(latest.T, weights.T, strict=True):
            rows = np.repeat(before, items.shape[1])
            found += weight[:, None] * np.asarray(counts[rows, items.ravel()]).reshape(items.shape)
    return np.asarray(np.log1p(found), dtype=np.float32)
