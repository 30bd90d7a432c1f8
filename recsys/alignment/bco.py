"""What BCO needs beside its loss: the shift of rewards, and weights that make bad prompts look like good ones.

Binary classifier optimisation, arXiv 2404.04656: reward shift, and underlying distribution matching (UDM).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from recsys.alignment.losses import PairLogProbs, mean_reward

FloatArray = npt.NDArray[np.floating[Any]]


class RewardShift:
    """The mean of all implicit rewards of the batches seen so far."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    @property
    def value(self) -> float:
        """The mean; 0 before the first batch."""
        return self._total / max(1, self._count)

    def update(self, pairs: PairLogProbs, beta: float) -> float:
        """Take in a batch; the mean with it."""
        count = len(pairs.chosen) + int(pairs.is_real.sum())
        self._total += float(mean_reward(pairs, beta)) * count
        self._count += count
        return self.value


class PromptClassifier:
    """Tells prompts of good feedback from those of bad feedback, where they come from other users or contexts.

    Args:
        good: float [N, D], embeddings of prompts with good answers.
        bad: float [M, D], embeddings of prompts with bad answers.
        bounds: weights are clamped to them.

    Raises:
        ValueError: fewer than 5 prompts of a kind, or widths that differ.
    """

    def __init__(self, good: FloatArray, bad: FloatArray, bounds: tuple[float, float] = (0.5, 2.0)) -> None:
        if min(len(good), len(bad)) < 5 or good.shape[1] != bad.shape[1]:
            raise ValueError(
                f"good and bad must be [N, D] and [M, D] with at least 5 rows, got {good.shape} and {bad.shape}"
            )
        self._bounds = bounds
        prompts = np.concatenate([good, bad])
        is_good = np.repeat([1, 0], [len(good), len(bad)])
        self._model = LogisticRegression(class_weight="balanced", max_iter=1000)
        held_out = cross_val_predict(self._model, prompts, is_good, cv=5, method="predict_proba")
        self.auc = float(roc_auc_score(is_good, held_out[:, 1]))
        """Of prompts that the classifier did not see. Above 0.6 the two kinds differ and the weights are needed."""
        self._model.fit(prompts, is_good)

    def weights(self, bad: FloatArray) -> npt.NDArray[np.float32]:
        """float32 [K]: clamp(P(good | prompt) / P(bad | prompt)) for prompts of bad answers, float [K, D]."""
        probability = self._model.predict_proba(bad)[:, 1]
        # Clamped on the way too: a sure classifier must not divide by 0.
        odds = probability / np.maximum(1 - probability, 1e-12)
        return np.asarray(np.clip(odds, *self._bounds), dtype=np.float32)
