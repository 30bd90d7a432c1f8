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
_ROUNDING = 1e-12
"""What is smaller by so much than that which it is a difference of is nothing."""


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

    def studentized(self, groups: Sequence[Sequence[CaseMetric]]) -> list[Interval]:
        """Intervals of sums of ratios, one for each group of one or more metrics whose values are added.

        How far a resample's value is from the value of all is counted in the resample's own standard errors
        (bootstrap-t), so that one which by chance lacks rare large values does not pass for a precise one. Where rare
        rewards make values skewed, these intervals hold as often as they say and percentiles do not. A limit is
        infinite where resamples without any spread, of a handful of rewards, leave it open.

        Efron, "The jackknife, the bootstrap and other resampling plans", 1982, chapter 10; Hall, "Theoretical
        comparison of bootstrap confidence intervals", 1988.
        """
        if not groups:
            return []
        linear = [_Linear.of(*self._sums(group)) for group in groups]
        columns = np.concatenate([each.columns for each in linear], axis=1)
        resampled = np.concatenate(
            [weights @ columns for weights in self._weights(self._n_resamples, width=columns.shape[1])]
        )
        starts = np.cumsum([0, *(each.columns.shape[1] for each in linear)])
        return [
            each.interval(resampled[:, begin:end], self._tail)
            for each, begin, end in zip(linear, starts[:-1], starts[1:], strict=True)
        ]

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
        items, row = np.unique(top[case, slot], return_inverse=True)
        shown = sparse.csr_array((np.ones(len(case)), (row, self._group[case])), shape=(len(items), self.num_users))
        values = exposure_metrics(np.asarray(shown.sum(axis=1), dtype=np.float64)[:, None], num_items)
        replicates: dict[str, list[FloatArray]] = {name: [] for name in values}
        for weights in self._weights(min(self._n_resamples, _EXPOSURE_RESAMPLES), width=len(items) + self.num_users):
            for name, resampled in exposure_metrics(np.asarray(shown @ weights.T), num_items).items():
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Linear:
    """A sum of k ratios over U users, and what its standard error on a resample is made from."""

    value: float
    columns: FloatArray
    """float64 [U, 2k + k(2k + 1)]: what users have above their share of each ratio, denominators, and the products of
    any two of these."""
    num_ratios: int

    @classmethod
    def of(cls, numerators: FloatArray, denominators: FloatArray) -> _Linear:
        """Of float64 [U, k] each."""
        ratios = _ratio(numerators.sum(axis=0), denominators.sum(axis=0))
        shares = ratios * denominators
        above = numerators - shares
        above[np.abs(above) <= _ROUNDING * np.maximum(np.abs(numerators), np.abs(shares))] = 0.0
        parts = np.concatenate([above, denominators], axis=1)
        one, two = np.triu_indices(parts.shape[1])
        return cls(
            value=float(ratios.sum()),
            columns=np.concatenate([parts, parts[:, one] * parts[:, two]], axis=1),
            num_ratios=len(ratios),
        )

    def interval(self, resampled: FloatArray, tail: float) -> Interval:
        """Of the columns' sums on each resample, float64 [n_resamples, columns], with so much left out on each side."""
        is_there = self.columns[:, self.num_ratios : 2 * self.num_ratios].any(axis=0)
        is_lost = (resampled[:, self.num_ratios : 2 * self.num_ratios][:, is_there] <= 0).any(axis=1)
        moves, errors = self._moves_and_errors(resampled)
        steps = np.where(moves == 0, 0.0, np.copysign(np.inf, moves))
        np.divide(moves, errors, out=steps, where=errors > 0)
        # Order statistics, not between them: they may be infinite.
        low = np.quantile(np.where(is_lost, -np.inf, steps), tail, method="lower")
        high = np.quantile(np.where(is_lost, np.inf, steps), 1 - tail, method="higher")
        error = self._moves_and_errors(self.columns.sum(axis=0)[None])[1][0]
        above, below = (step * error if np.isfinite(step) else step for step in (-low, high))
        return Interval(value=self.value, low=float(self.value - below), high=float(self.value + above))

    def _moves_and_errors(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """float64 [r] each: how far the value moves, and its standard error (delta method)."""
        k = self.num_ratios
        above, below, products = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k :]
        moves = _ratio(above, below)
        scale = _ratio(np.ones_like(below), below)
        factors = np.concatenate([scale, -moves * scale], axis=1)
        one, two = np.triu_indices(2 * k)
        squares = np.where(one == two, 1, 2) * factors[:, one] * factors[:, two] * products
        variances, noise = squares.sum(axis=1), _ROUNDING * np.abs(squares).sum(axis=1)
        return moves.sum(axis=1), np.sqrt(np.where(variances > noise, variances, 0.0))


def _ratio(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    return np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators > 0)
