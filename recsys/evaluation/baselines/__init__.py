"""Models that every report stands beside: popularity, item-kNN, a skip-gram counter and SASRec, run and not copied."""

from __future__ import annotations

from typing import Protocol, Self

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.evaluation.baselines.item_knn import ItemKnn
from recsys.evaluation.baselines.popularity import Popularity
from recsys.evaluation.baselines.ranking import FloatArray
from recsys.evaluation.baselines.sasrec import SasRec, SasRecEpoch
from recsys.evaluation.baselines.skip_gram import SkipGram
from recsys.evaluation.config import BaselineName, EvaluationConfig


class Baseline(Protocol):
    """What all baselines share; a fitted one is a `Ranker`."""

    mask_seen: bool
    """Whether a history's items are left out of its list."""

    def fit(self, train: Sequences, num_items: int, valid: Examples | None = None) -> Self:
        """Learn from training sequences; `valid` may choose when to stop and is never learned from."""

    def scores(self, histories: Sequences) -> FloatArray:
        """float32 [B, num_items], higher is better, seen items not masked."""

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        """Ranked lists int64 [B, k], best first, unique in a row, -1 where there are no more items."""


def build_baseline(name: BaselineName, config: EvaluationConfig) -> Baseline:
    """An unfitted baseline with the report's masking switch."""
    match name:
        case "popularity":
            return Popularity(mask_seen=config.mask_seen)
        case "item_knn":
            return ItemKnn(mask_seen=config.mask_seen)
        case "skip_gram":
            return SkipGram(mask_seen=config.mask_seen)
        case "sasrec":
            return SasRec(config.sasrec, mask_seen=config.mask_seen)


__all__ = ["Baseline", "ItemKnn", "Popularity", "SasRec", "SasRecEpoch", "SkipGram", "build_baseline"]
