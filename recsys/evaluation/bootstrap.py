"""Confidence intervals by resampling users. Knows nothing of what the numbers mean.

Users and not cases are drawn: several cases of one user are not independent. All models are resampled alike, which
makes differences between them paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from recsys.data.sequences import IntArray
from recsys.evaluation.metrics import LIST_LENGTH, CaseMetric, exposure_metrics

FloatArray = npt.NDArray[np.float64]

_BLOCK_BYTES = 64 << 20
_EXPOSURE_RESAMPLES = 200
"""Enough for a standard deviation, which is all that exposure intervals need."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its confidence interval."""

    value: float
    low: float
    high: float


class UserBootstrap:
    """Resamples of the users behind n evaluation cases, the same at every call."""

    def __init__(self, users: IntArray, *, n_resamples: int, seed: int, confidence: float) -> None:
        """`users`: int64 [n], the user of each case."""
        unique, self._group = np.unique(users, return_inverse=True)
        self.num_users = len(unique)
        self._n_resamples = n_resamples
        self._seed = seed
        self._tail = (1 - confidence) / 2

    def intervals(self, metrics: Sequence[CaseMetric]) -> list[Interval]:
        """Percentile intervals of ratios of sums (Efron and Tibshirani, 1993, chapter 13)."""
        if not metrics:
            return []
        return self._percentiles(*self.replicates(metrics))

    def replicates(self, metrics: Sequence[CaseMetric]) -> tuple[FloatArray, FloatArray]:
        """The ratios float64 [m], and what they are on each resample, float64 [n_resamples, m]."""
        numerators, denominators = self._sums(metrics)
        values = _ratio(numerators.sum(axis=0), denominators.sum(axis=0))
        return values, self._resampled_ratios(numerators, denominators)

    def sums(self, groups: Sequence[Sequence[CaseMetric]]) -> list[Interval]:
        """Percentile intervals of sums of ratios: one for each group of one or more metrics, whose values are added."""
        if not groups:
            return []
        values, replicates = self.replicates([metric for group in groups for metric in group])
        starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
        return self._percentiles(np.add.reduceat(values, starts), np.add.reduceat(replicates, starts, axis=1))

    def differences(self, pairs: Sequence[tuple[CaseMetric, CaseMetric]]) -> list[Interval]:
        """Intervals of "first minus second", both on the same resamples of users."""
        if not pairs:
            return []
        (first, firsts), (second, seconds) = (self.replicates([pair[side] for pair in pairs]) for side in (0, 1))
        return self._percentiles(first - second, firsts - seconds)

    def exposure_intervals(self, lists: IntArray, num_items: int) -> dict[str, Interval]:
        """Normal intervals of `exposure_metrics`: value plus and minus quantiles of the resamples' standard deviation.

        A resample holds only 63 % of the users, so it covers less of the catalogue than all of them do; its spread
        can be used and its level cannot, which rules percentiles out.
        """
        top = lists[:, :LIST_LENGTH]
        case, slot = np.nonzero(top >= 0)
        shown = sparse.csr_array(
            (np.ones(len(case)), (top[case, slot], self._group[case])), shape=(num_items, self.num_users)
        )
        values = exposure_metrics(np.asarray(shown.sum(axis=1), dtype=np.float64)[:, None])
        replicates: dict[str, list[FloatArray]] = {name: [] for name in values}
        for weights in self._weights(min(self._n_resamples, _EXPOSURE_RESAMPLES), width=num_items + self.num_users):
            for name, resampled in exposure_metrics(np.asarray(shown @ weights.T)).items():
                replicates[name].append(resampled)
        quantile = float(stats.norm.ppf(1 - self._tail))
        intervals = {}
        for name, value in values.items():
            margin = quantile * float(np.concatenate(replicates[name]).std())
            centre = float(value[0])
            intervals[name] = Interval(value=centre, low=max(0.0, centre - margin), high=min(1.0, centre + margin))
        return intervals

    def _weights(self, n_resamples: int, width: int) -> Iterator[FloatArray]:
        """Blocks of float64 [resamples, num_users]: how often each user was drawn. `width` bounds a block's memory."""
        generator = np.random.default_rng(self._seed)
        block = max(1, _BLOCK_BYTES // (8 * max(width, self.num_users)))
        for begin in range(0, n_resamples, block):
            rows = min(block, n_resamples - begin)
            drawn = generator.integers(0, self.num_users, size=(rows, self.num_users))
            drawn += np.arange(rows)[:, None] * self.num_users
            counts = np.bincount(drawn.ravel(), minlength=rows * self.num_users)
            yield counts.reshape(rows, self.num_users).astype(np.float64)

    def _sums(self, metrics: Sequence[CaseMetric]) -> tuple[FloatArray, FloatArray]:
        """Numerators and denominators summed over each user's cases, float64 [num_users, m]."""
        by_user = sparse.csr_array(
            (np.ones(len(self._group)), (self._group, np.arange(len(self._group)))),
            shape=(self.num_users, len(self._group)),
        )
        numerators = by_user @ np.stack([metric.numerator for metric in metrics], axis=1)
        denominators = by_user @ np.stack([metric.denominator for metric in metrics], axis=1)
        return np.asarray(numerators), np.asarray(denominators)

    def _resampled_ratios(self, numerators: FloatArray, denominators: FloatArray) -> FloatArray:
        """float64 [n_resamples, m]."""
        blocks = [
            _ratio(weights @ numerators, weights @ denominators)
            for weights in self._weights(self._n_resamples, width=numerators.shape[1])
        ]
        return np.concatenate(blocks)

    def _percentiles(self, values: FloatArray, replicates: FloatArray) -> list[Interval]:
        low, high = np.quantile(replicates, [self._tail, 1 - self._tail], axis=0)
        return [
            Interval(value=float(value), low=float(lower), high=float(upper))
            for value, lower, upper in zip(values, low, high, strict=True)
        ]


def _ratio(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    return np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators > 0)
