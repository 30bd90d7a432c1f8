"""What followed what, at distances one to five: counting only, and hard to beat on sparse logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.errors import ArtifactError
from recsys.evaluation.baselines.counting import (
    evidence_then_popularity,
    item_counts,
    recency_weights,
    scale_rows,
    transitions,
)
from recsys.evaluation.baselines.ranking import FloatArray, rank_by_score
from recsys.files import atomic_directory


class SkipGram:
    """Direction-aware skip-gram counter.

    `count[i, j]` is the sum of `distance_decay ** (d - 1)` over the times j came d places after i in training, for d
    up to `max_distance`. Rows are divided by the square root of their sum: whole counts let popular history items
    drown the others, full division trusts rare ones too much. An item's score is the sum of its counts after each
    history item, times `history_decay ** age`; items that followed nothing of the history come after, by popularity.
    The defaults were chosen on validation cases of Amazon Beauty.
    """

    _counts: IntArray
    _following: sparse.csr_array

    def __init__(
        self,
        *,
        max_distance: int = 5,
        distance_decay: float = 0.8,
        history_decay: float = 0.7,
        mask_seen: bool = True,
    ) -> None:
        self.max_distance = max_distance
        self.distance_decay = distance_decay
        self.history_decay = history_decay
        self.mask_seen = mask_seen

    def fit(self, train: Sequences, num_items: int, valid: Examples | None = None) -> Self:
        """Count transitions; validation cases are not looked at."""
        self._counts = item_counts(train, num_items)
        counts = transitions(train, num_items, self.max_distance, self.distance_decay)
        totals = np.asarray(counts.sum(axis=1))
        self._following = scale_rows(counts, 1 / np.sqrt(np.where(totals > 0, totals, 1)))
        return self

    def evidence(self, histories: Sequences) -> sparse.csr_array:
        """float32 [B, num_items]: the decayed counts alone, where there are any."""
        weights = recency_weights(histories, len(self._counts), self.history_decay)
        return sparse.csr_array(weights @ self._following)

    def scores(self, histories: Sequences) -> FloatArray:
        """float32 [B, num_items]: decayed counts; below 0, in order of popularity, where there are none."""
        weights = recency_weights(histories, len(self._counts), self.history_decay)
        return evidence_then_popularity(weights, self._following, self._counts)

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        """Ranked lists int64 [B, k], best first, -1 where there are no more items."""
        return rank_by_score(self.scores(histories), k, seen=histories if self.mask_seen else None)

    def save(self, directory: Path) -> None:
        """Write `counts.safetensors` and `skip_gram.json` (settings)."""
        following = self._following
        facts = {
            "max_distance": self.max_distance,
            "distance_decay": self.distance_decay,
            "history_decay": self.history_decay,
            "mask_seen": self.mask_seen,
        }
        with atomic_directory(directory) as temporary:
            tensors = {"data": following.data, "indices": following.indices, "indptr": following.indptr}
            save_file({"item_counts": self._counts, **tensors}, temporary / "counts.safetensors")
            (temporary / "skip_gram.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> SkipGram:
        """Read what `save` wrote. Raises ArtifactError when a file is missing or damaged."""
        try:
            loaded = cls(**json.loads((directory / "skip_gram.json").read_text()))
            tensors = load_file(directory / "counts.safetensors")
            loaded._counts = tensors["item_counts"]
            size = len(loaded._counts)
            loaded._following = sparse.csr_array(
                (tensors["data"], tensors["indices"], tensors["indptr"]), shape=(size, size)
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"cannot read the counter in {directory}: {error}; make it again") from error
        return loaded
