"""Hybrid preferences: which pairs deserve an expensive label, given that only so many can have one.

After arXiv 2410.19133: a performance model learns, from many routings that were tried, how good what was trained on a
routing became, given how many pairs of each kind it sent to the expensive labeller. Then the routing with the best
prediction under the budget is taken.

Shapes: P pairs, F features of a pair (0 or 1, or counts), M routings that were tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from recsys.alignment.pairs import PreferencePairs
from recsys.data.sequences import IntArray

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


class PerformanceModel:
    """Predicts the score of a routing from its feature counts: quadratic regression, ridge chosen by leave-one-out."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @classmethod
    def fit(cls, counts: FloatArray, scores: FloatArray) -> Self:
        """From routings that were tried.

        Args:
            counts: float [M, F], for each routing the summed features of the pairs that it sent to the labeller.
            scores: float [M], how good what was trained on it became; larger is better.

        Raises:
            ValueError: shapes that do not match, or fewer than 10 routings.
        """
        if counts.ndim != 2 or scores.shape != (len(counts),) or len(counts) < 10:
            raise ValueError(
                f"counts must be [M, F] and scores [M] with M at least 10, got {list(counts.shape)}, "
                f"{list(scores.shape)}"
            )
        pipeline = make_pipeline(
            StandardScaler(),
            PolynomialFeatures(degree=2, include_bias=False),
            StandardScaler(),
            RidgeCV(alphas=np.logspace(-3, 3, 13)),
        )
        pipeline.fit(counts, scores)
        return cls(pipeline)

    def predict(self, counts: FloatArray) -> npt.NDArray[np.float64]:
        """float64 [K]: predicted scores of routings with the given counts, float [K, F]."""
        return np.asarray(self._pipeline.predict(counts), dtype=np.float64)


def choose_routing(
    model: PerformanceModel, features: FloatArray, budget: int, *, simulations: int = 500, seed: int = 0
) -> IntArray:
    """int64 [budget], ascending: the rows of `features` (float [P, F]) that go to the expensive labeller.

    Candidates are random subsets and one built step by step: at each step the pairs whose kind raises the prediction
    most. The one with the best prediction is taken, so that the result is predicted to be no worse than any of the
    random ones.

    Args:
        model: predicts scores.
        features: of the pairs to route.
        budget: how many can be labelled.
        simulations: random subsets.
        seed: of the subsets.

    Raises:
        ValueError: a budget outside 0..P.
    """
    if not 0 <= budget <= len(features):
        raise ValueError(f"budget must lie in 0..{len(features)}, got {budget}")
    if budget == 0:
        return np.zeros(0, dtype=np.int64)
    random = np.random.default_rng(seed)
    candidates = [_by_gain(model, features, budget)]
    candidates += [random.choice(len(features), budget, replace=False) for _ in range(simulations)]
    counts = np.stack([features[rows].sum(0) for rows in candidates])
    return np.sort(candidates[int(model.predict(counts).argmax())]).astype(np.int64)


def _by_gain(model: PerformanceModel, features: FloatArray, budget: int) -> IntArray:
    """Kinds of pairs (equal features) by what a further step of them adds to the prediction, about 50 steps in all."""
    kinds, kind_of = np.unique(features, axis=0, return_inverse=True)
    waiting = [list(np.flatnonzero(kind_of.reshape(-1) == kind)) for kind in range(len(kinds))]
    step = max(1, budget // 50)
    total = np.zeros(features.shape[1])
    taken: list[int] = []
    while len(taken) < budget:
        sizes = np.array([min(step, budget - len(taken), len(rows)) for rows in waiting])
        predicted = model.predict(total + sizes[:, None] * kinds)
        best = int(np.where(sizes > 0, predicted, -np.inf).argmax())
        taken += [int(waiting[best].pop()) for _ in range(int(sizes[best]))]
        total = total + sizes[best] * kinds[best]
    return np.array(taken, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RoutingFilter:
    """Has the pairs that deserve it labelled anew, and keeps the others as they are."""

    model: PerformanceModel
    """Of routings that were tried."""
    features: Callable[[PreferencePairs], FloatArray]
    """float [P, F]: the kinds of pairs that the model counts."""
    budget: int
    """Pairs that can be labelled; all, where there are fewer."""
    label: Callable[[PreferencePairs], PreferencePairs]
    """The expensive labeller: the same pairs, in their order, with its verdict; may swap answers."""
    seed: int = 0
    """See `choose_routing`."""

    def __call__(self, pairs: PreferencePairs, /) -> PreferencePairs:
        """See the class."""
        rows = choose_routing(self.model, self.features(pairs), min(self.budget, len(pairs)), seed=self.seed)
        labelled = self.label(pairs.select(rows))
        if labelled.frame["pair_id"].to_list() != pairs.frame["pair_id"].gather(rows).to_list():
            raise ValueError("label must give the pairs back in their order, with their pair_id")
        order = np.arange(len(pairs))
        order[rows] = len(pairs) + np.arange(len(rows))
        return PreferencePairs(frame=pairs.frame.vstack(labelled.frame)[order])
