"""What a ranker knows about each candidate: what every source says of it. Knows no targets.

Shapes: B histories, C candidates, F features, M = candidates of all histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.data.sequences import IntArray
from recsys.retrieval.sources import BoolArray, FloatArray, Proposal

PRIOR = "popularity"
"""The source that knows no history: it has a value and no rank, and the flag of its items is whether they are new."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The candidates of B histories, one after the other."""

    offsets: IntArray
    """int64 [B + 1]: those of history b are `offsets[b] : offsets[b + 1]`."""
    items: IntArray
    """int64 [M], ascending within a history."""
    features: FloatArray
    """float32 [M, F]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owners(self) -> IntArray:
        """int64 [M]: the history of each candidate."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def select(self, rows: IntArray) -> Candidates:
        """The candidates of the histories at `rows` (int64), in that order."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.append(0, np.cumsum(sizes))
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)
        return Candidates(offsets=offsets, items=self.items[flat], features=self.features[flat])


def feature_names(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The F features of `candidate_features`, in order."""
    return tuple(
        f"{source} {feature}"
        for source in sources
        for feature in (("value", "new") if source == PRIOR else ("value", "log rank", "missing"))
    )


def union(proposals: Mapping[str, Proposal]) -> IntArray:
    """int64 [B, C]: the items that any source proposes, ascending, -1 on the right."""
    none = np.iinfo(np.int64).max
    items = np.concatenate([proposal.items for proposal in proposals.values()], axis=1)
    items = np.sort(np.where(items >= 0, items, none), axis=1)
    items[:, 1:][items[:, 1:] == items[:, :-1]] = none
    items.sort(axis=1)
    width = int((items < none).sum(axis=1).max(initial=0))
    return np.where(items < none, items, -1)[:, :width]


def candidate_features(proposals: Mapping[str, Proposal], items: IntArray, is_new: BoolArray) -> FloatArray:
    """float32 [B, C, F], zeros beside -1.

    Of each source: its score as it is (a log-probability says how sure the source is, not only in which order), the
    log of the rank among the candidates, and whether the source has no score for the item. Such an item takes the
    worst score of the row and shares the last rank; how much worse than that it is, is for the flag's weight to say.

    Args:
        proposals: by the name of the source.
        items: int64 [B, C], a `union`.
        is_new: bool [num_items]: had no interaction in training.
    """
    exists = items >= 0
    columns = []
    for name, proposal in proposals.items():
        scores = proposal.scores(items)
        if name == PRIOR:
            columns += [scores, is_new[items]]
            continue
        present = np.isfinite(scores)
        worst = np.where(present, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        value = np.where(present, scores, np.where(np.isfinite(worst), worst, 0))
        columns += [value, np.log(_ranks(scores, present)), ~present]
    features = np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=-1)
    features[~exists] = 0
    return features


def _ranks(scores: FloatArray, present: BoolArray) -> IntArray:
    """int64 [B, C], from 1: equal scores in the order of their items; all that are not present after the others."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty(scores.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None, :], axis=1)
    return np.where(present, ranks, present.sum(axis=1, keepdims=True) + 1)
