"""Intervals of off-policy estimates over users: several rounds of one user are not independent.

Three, which fail differently. The studentised bootstrap is the one to read: it follows the skew that rare rewards times
large weights have. Student's t takes users' sums as normal, and misses on the upper side where they are not. Empirical
Bernstein (Maurer and Pontil, COLT 2009) holds for any number of users whose sums lie within the range that was seen,
and is wide. None knows of rewards that never came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recsys.data.sequences import IntArray
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from recsys.simulator.off_policy.estimators import Terms, estimate, influence
from recsys.simulator.off_policy.log import FloatArray

MAX_UNITS = 20_000
"""More users than this are put into so many groups at random, and groups are resampled: it changes the width by less
than a hundredth."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its uncertainty."""

    value: float
    bootstrap: Interval
    """Studentised, over resampled users: read this one. Infinite on a side that a handful of rewards leaves open."""
    student_t: Interval
    """From the spread between users, to first order."""
    bernstein: Interval | None
    """Empirical Bernstein; None for self-normalised estimates, which are no means."""
    lift: Interval
    """Over the policy that served, on the same resamples of users, studentised."""
    parameter: float | None = None
    """Of the estimator, as it was chosen; None where it has none. Of `mips` the number of codes in a prefix."""
    bias: Interval | None = None
    """What the log says that the estimate leaves out, by Student's t: the mean of what it shrinks away or of the reward
    model's errors. None of its other intervals knows of this. None for estimators without such a bias."""


class UserUnits:
    """The users behind n rounds, as what is resampled.

    Args:
        users: int64 [n].
        n_resamples: of the bootstrap.
        seed: of the groups and the bootstrap.
        confidence: of all intervals, such as .95.
    """

    def __init__(self, users: IntArray, *, n_resamples: int, seed: int, confidence: float) -> None:
        unique, index = np.unique(users, return_inverse=True)
        self.num_users = len(unique)
        if len(unique) > MAX_UNITS:
            groups = np.arange(len(unique)) % MAX_UNITS
            index = np.random.default_rng(seed).permutation(groups)[index]
        self._unit = index
        self.num_units = min(len(unique), MAX_UNITS)
        self._rounds = self._sum(np.ones(len(users)))
        self._bootstrap = UserBootstrap(
            np.arange(self.num_units), n_resamples=n_resamples, seed=seed, confidence=confidence
        )
        self._confidence = confidence

    def summed(self, terms: Terms) -> Terms:
        """An estimate over rounds as one over units, of the same value."""
        return tuple(
            CaseMetric(
                numerator=self._sum(term.numerator),
                denominator=self._rounds if _is_mean(term) else self._sum(term.denominator),
            )
            for term in terms
        )

    def estimates(self, all_terms: Sequence[Terms], served: Terms) -> list[Estimate]:
        """Estimates with intervals.

        Args:
            all_terms: of estimators over the n rounds.
            served: what the policy that served earned, a plain mean, which lifts are over.
        """
        summed = [self.summed(terms) for terms in all_terms]
        (below,) = self.summed(served)
        found = self._bootstrap.studentized([*summed, *(_minus(terms, below) for terms in summed)])
        return [
            Estimate(
                value=estimate(over_units),
                bootstrap=bootstrap,
                student_t=self.student_t(over_units),
                bernstein=self._bernstein(over_units) if all(map(_is_mean, terms)) else None,
                lift=lift,
            )
            for terms, over_units, bootstrap, lift in zip(
                all_terms, summed, found[: len(summed)], found[len(summed) :], strict=True
            )
        ]

    def student_t(self, summed: Terms) -> Interval:
        """Student's t over users, of an estimate over units."""
        value, moves = estimate(summed), influence(summed)
        freedom = self.num_units - 1
        error = float(moves.std(ddof=1) / np.sqrt(self.num_units)) if freedom else np.inf
        margin = float(stats.t.ppf((1 + self._confidence) / 2, max(freedom, 1))) * error
        return Interval(value=value, low=value - margin, high=value + margin)

    def _sum(self, values: FloatArray) -> FloatArray:
        return np.bincount(self._unit, values, minlength=self.num_units).astype(np.float64, copy=False)

    def _bernstein(self, summed: Terms) -> Interval | None:
        if self.num_units == 1:
            return None
        value, moves = estimate(summed), influence(summed)
        odds = np.log(4 / (1 - self._confidence))
        spread = float(moves.max() - moves.min())
        margin = float(
            np.sqrt(2 * moves.var(ddof=1) * odds / self.num_units) + 7 * spread * odds / (3 * (self.num_units - 1))
        )
        return Interval(value=value, low=value - margin, high=value + margin)


def _minus(terms: Terms, mean: CaseMetric) -> Terms:
    first, *others = terms
    if first.denominator is mean.denominator:
        return (CaseMetric(numerator=first.numerator - mean.numerator, denominator=mean.denominator), *others)
    return (*terms, CaseMetric(numerator=-mean.numerator, denominator=mean.denominator))


def _is_mean(term: CaseMetric) -> bool:
    return bool((term.denominator == 1).all())
