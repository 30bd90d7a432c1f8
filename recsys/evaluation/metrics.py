"""The one place that defines what is measured. Works on ranked lists of items; knows nothing of models.

Shapes: `lists` is int64 [n, K], best first, -1 = no item, n cases; `targets` is int64 [n], the item that came next.
With one target a case, let r be its 1-based rank in the list (none when it is not there). Then a case's

    Recall@k = 1 if r <= k else 0                        (the same as HitRate@k)
    NDCG@k   = 1 / log2(r + 1) if r <= k else 0          (the ideal DCG of one target is 1)
    MRR@k    = 1 / r if r <= k else 0

and a metric is their mean over cases. A hit is the target *item*: another item with an equal code is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.data.sequences import IntArray, Sequences

FloatArray = npt.NDArray[np.float64]

LIST_LENGTH = 10
"""Cut-off of MRR and of all metrics that describe the lists themselves."""

HEAD_SHARE = 0.1
"""The head of the catalogue: this share of its items, the most popular ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseMetric:
    """A metric that is a ratio of sums over cases: `numerator.sum() / denominator.sum()`, 0 when there is nothing."""

    numerator: FloatArray
    """float64 [n]."""
    denominator: FloatArray
    """float64 [n], not negative; all 1 for a plain mean."""

    @classmethod
    def mean_of(cls, values: npt.ArrayLike) -> CaseMetric:
        """The plain mean of a value a case, [n]."""
        numerator = np.asarray(values, dtype=np.float64)
        return cls(numerator=numerator, denominator=np.ones(len(numerator)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemPopularity:
    """How often each item occurs in training, and what follows from it."""

    counts: IntArray
    """int64 [num_items]."""

    @classmethod
    def of(cls, train: Sequences, num_items: int) -> ItemPopularity:
        """Count the items of the training sequences."""
        return cls(counts=np.bincount(train.items, minlength=num_items).astype(np.int64))

    @cached_property
    def information(self) -> FloatArray:
        """Self-information in bits, -log2 p(i), p(i) = (count + 1) / (interactions + items): never infinite."""
        return np.asarray(-np.log2((self.counts + 1) / (self.counts.sum() + len(self.counts))))

    @cached_property
    def percentile(self) -> FloatArray:
        """In (0, 1): share of the catalogue that is less popular, equals counting half."""
        return np.asarray((stats.rankdata(self.counts) - 0.5) / len(self.counts))

    @cached_property
    def head(self) -> npt.NDArray[np.bool_]:
        """The `HEAD_SHARE` most popular items; equals go to the lower index, so that the size is exact."""
        order = np.lexsort((np.arange(len(self.counts)), -self.counts))
        mask = np.zeros(len(self.counts), dtype=bool)
        mask[order[: max(1, round(HEAD_SHARE * len(order)))]] = True
        return mask


def hit_ranks(lists: IntArray, targets: IntArray) -> IntArray:
    """int64 [n]: the target's rank in its list, 1 = first; 0 = not there."""
    hits = lists == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)


def accuracy_metrics(lists: IntArray, targets: IntArray, ks: tuple[int, ...]) -> dict[str, CaseMetric]:
    """`recall@k` and `ndcg@k` for every k, and `mrr@10`; the lists must be at least `max(ks)` long."""
    ranks = hit_ranks(lists, targets)
    gain = np.where(ranks > 0, 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0)
    within = {k: (ranks > 0) & (ranks <= k) for k in (*ks, LIST_LENGTH)}
    metrics = {f"recall@{k}": within[k].astype(np.float64) for k in ks}
    metrics |= {f"ndcg@{k}": np.where(within[k], gain, 0.0) for k in ks}
    metrics[f"mrr@{LIST_LENGTH}"] = np.where(within[LIST_LENGTH], 1 / np.maximum(ranks, 1), 0.0)
    return {name: CaseMetric.mean_of(values) for name, values in metrics.items()}


def list_metrics(lists: IntArray, popularity: ItemPopularity) -> dict[str, CaseMetric]:
    """Means over the recommended slots (the first ten of each list).

    - `novelty@10`: self-information of the items, in bits (Zhou et al., 2010, doi:10.1073/pnas.1000488107).
    - `popularity_percentile@10`: how popular they are, as a rank in the catalogue from 0 to 1; 0.5 is unbiased.
    - `head_share@10`: share of slots that go to the 10 % most popular items.
    """
    top = lists[:, :LIST_LENGTH]
    filled = top >= 0
    slots = filled.sum(axis=1).astype(np.float64)

    def mean_of(values: FloatArray) -> CaseMetric:
        return CaseMetric(numerator=np.where(filled, values[top], 0.0).sum(axis=1), denominator=slots)

    return {
        f"novelty@{LIST_LENGTH}": mean_of(popularity.information),
        f"popularity_percentile@{LIST_LENGTH}": mean_of(popularity.percentile),
        f"head_share@{LIST_LENGTH}": mean_of(popularity.head.astype(np.float64)),
    }


def exposure_metrics(exposure: FloatArray, num_items: int) -> dict[str, FloatArray]:
    """What all lists together show of the catalogue.

    - `coverage@10`: share of the catalogue that is in at least one list.
    - `gini@10`: Gini coefficient of how often each item is shown, over the whole catalogue; 0 = all items equally
      often, towards 1 = a few items take everything.

    Args:
        exposure: float64 [m, r]: how often each item stands in the first ten places; a column a resample. Items that
            are in no list may be left out.
        num_items: size of the catalogue.

    Returns:
        float64 [r] a metric.
    """
    ordered = np.sort(exposure, axis=0)
    total = ordered.sum(axis=0)
    # What was left out comes first in the order, and adds nothing.
    rank = np.arange(num_items - len(exposure) + 1, num_items + 1)
    weighted = ((2 * rank - num_items - 1)[:, None] * ordered).sum(axis=0)
    return {
        f"coverage@{LIST_LENGTH}": (exposure > 0).sum(axis=0) / num_items,
        f"gini@{LIST_LENGTH}": np.where(total > 0, weighted / (num_items * np.maximum(total, 1)), 0.0),
    }
