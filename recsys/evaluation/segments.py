"""Groups of evaluation cases: by length of the history and by popularity of the target."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import Examples
from recsys.evaluation.metrics import ItemPopularity

BoolArray = npt.NDArray[np.bool_]

_LENGTH_BINS = ((0, 0), (1, 5), (6, 10), (11, 20), (21, 50), (51, None))
_MID_SHARE = 0.5


def segments(cases: Examples, popularity: ItemPopularity) -> dict[str, dict[str, BoolArray]]:
    """Masks bool [n] of the segments that hold a case; within a dimension each case is in exactly one.

    - `history_length`: items in the history.
    - `target_popularity`: `head` is the 10 % most popular items, `mid` those from there down to half of the catalogue,
      `tail` the rest of the items seen in training, and `cold` the items that training never showed.
    """
    dimensions = {"history_length": _by_length(cases), "target_popularity": _by_popularity(cases, popularity)}
    return {
        dimension: {label: mask for label, mask in groups.items() if mask.any()}
        for dimension, groups in dimensions.items()
    }


def _by_length(cases: Examples) -> dict[str, BoolArray]:
    lengths = cases.histories.lengths
    groups = {}
    for low, high in _LENGTH_BINS:
        label = str(low) if low == high else f"{low}-{high}" if high is not None else f"{low}+"
        groups[label] = (lengths >= low) & (lengths <= (high if high is not None else np.iinfo(np.int64).max))
    return groups


def _by_popularity(cases: Examples, popularity: ItemPopularity) -> dict[str, BoolArray]:
    counts = popularity.counts
    order = np.lexsort((np.arange(len(counts)), -counts))
    top_half = np.zeros(len(counts), dtype=bool)
    top_half[order[: round(_MID_SHARE * len(order))]] = True
    target = cases.targets
    cold = counts[target] == 0
    head = popularity.head[target] & ~cold
    mid = top_half[target] & ~head & ~cold
    return {"head": head, "mid": mid, "tail": ~(head | mid | cold), "cold": cold}
