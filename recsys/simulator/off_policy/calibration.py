"""Whether actions were taken as often as the log says they are: propensities that nobody drew from make every estimate
wrong, and no estimate shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recsys.data.sequences import IntArray
from recsys.simulator.off_policy.log import BanditLog, FloatArray

_NUM_BINS = 10
_LEAST_EXPECTED = 5.0
"""Fewer expected counts are no matter for the chi-squared test (Cochran, 1954): they are counted together."""


@dataclass(frozen=True, kw_only=True)
class PropensityBin:
    """A tenth of all that could have been taken, by its propensity. Equal propensities are in one bin."""

    num_chances: int
    """Pairs of a choice and an action that it could have taken."""
    propensity: float
    """Mean."""
    frequency: float
    """Share that was taken: close to the mean propensity if that is true."""


@dataclass(frozen=True, kw_only=True)
class PropensityCalibration:
    """How often actions were taken against how often the policy that served says it takes them."""

    bins: Sequence[PropensityBin]
    """By rising propensity."""
    slope: float | None
    """Of the frequencies over the propensities: 1 if they are true, 0 if actions were taken without regard to them.
    None where all are equal."""
    slope_error: float | None
    """Its standard error if the propensities are true."""
    p_value: float | None
    """Of the chi-squared test that all actions were taken as often as their propensities say; small ones say no. None
    where each kind of choice was made too seldom to tell."""

    @classmethod
    def of(cls, chances: FloatArray, taken: IntArray, counts: IntArray) -> PropensityCalibration:
        """Of kinds of choices, each of which was made some number of times.

        Args:
            chances: float64 [C, K], the propensities of all actions, of sum 1; 0 of those that cannot be taken.
            taken: int64 [C, K], how often each was taken.
            counts: int64 [C], how often a choice of the kind was made.
        """
        # What cannot be taken says nothing.
        trials = np.where(chances > 0, counts[:, None], 0)
        above = chances - (trials * chances).sum() / trials.sum()
        spread = float((trials * np.square(above)).sum())
        slope = error = None
        if spread > 1e-12 * counts.sum():
            squares = np.square(chances).sum(axis=1)
            slope = float((above * taken).sum() / spread)
            error = float(np.sqrt(counts @ ((chances**3).sum(axis=1) - np.square(squares))) / spread)
        return cls(
            bins=_bins(chances, taken, trials), slope=slope, slope_error=error, p_value=_p_value(chances, taken, trials)
        )

    @classmethod
    def of_log(cls, log: BanditLog) -> PropensityCalibration | None:
        """Of a log that has its `behaviour`; None for others, which do not say what could have been taken."""
        if log.behaviour is None:
            return None
        shape = (log.num_contexts, log.num_actions)
        taken = np.bincount(log.context_of * log.num_actions + log.actions, minlength=shape[0] * shape[1])
        taken = taken.reshape(shape)
        return cls.of(log.behaviour[: shape[0]], taken, taken.sum(axis=1))

    def problem(self, max_error: float, standard_errors: float) -> str | None:
        """Why the propensities are not to be believed; None if they are.

        Args:
            max_error: by which the slope may miss 1.
            standard_errors: by which it may miss that.
        """
        if self.slope is None or self.slope_error is None:
            return None
        if abs(self.slope - 1) <= max_error + standard_errors * self.slope_error:
            return None
        return (
            f"actions were not taken as often as their propensities say (slope {self.slope:.2f} ± "
            f"{self.slope_error:.2f} where it should be 1); log what was drawn from"
        )


def _bins(chances: FloatArray, taken: IntArray, trials: IntArray) -> list[PropensityBin]:
    values, index = np.unique(chances, return_inverse=True)
    index = index.reshape(-1)
    weight = np.bincount(index, trials.reshape(-1))
    of_value = np.bincount(index, taken.reshape(-1))
    middle = (np.cumsum(weight) - weight / 2) / weight.sum()
    tenth = np.minimum((middle * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    sums = [np.bincount(tenth, each, minlength=_NUM_BINS) for each in (weight, weight * values, of_value)]
    return [
        PropensityBin(num_chances=int(total), propensity=float(chance / total), frequency=float(count / total))
        for total, chance, count in zip(*sums, strict=True)
        if total > 0
    ]


def _p_value(chances: FloatArray, taken: IntArray, trials: IntArray) -> float | None:
    expected = chances * trials
    is_rare = expected < _LEAST_EXPECTED
    wanted, found = (
        np.column_stack([np.where(is_rare, 0.0, each), np.where(is_rare, each, 0.0).sum(axis=1)])
        for each in (expected, taken)
    )
    there = wanted >= _LEAST_EXPECTED
    statistic = float((np.square(found - wanted)[there] / wanted[there]).sum())
    freedom = int(np.maximum(there.sum(axis=1) - 1, 0).sum())
    return float(stats.chi2.sf(statistic, freedom)) if freedom else None
