"""Do several ways to judge policies agree on their order? Held-out metrics, simulated reward, off-policy estimates.

Each evaluator gives a number a policy and what it is on resamples. Their orders are compared by Kendall's tau-b, whose
interval comes from the same resamples; where two evaluators resample the same users alike, theirs are paired. Those
that disagree are flagged: no single number is then to be believed. Which policies two evaluators order differently is
listed, with whether both are sure of their order: a tie within noise is no disagreement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.metrics import CaseMetric

DoubleArray = npt.NDArray[np.float64]

DISAGREE_BELOW = 0.3
_TAIL = 0.025


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluator:
    """How one evaluator judges P policies.

    Raises:
        DataError: the shapes do not fit, or a number is not finite.
    """

    name: str
    policies: tuple[str, ...]
    values: DoubleArray
    """float64 [P], higher is better."""
    replicates: DoubleArray
    """float64 [R, P]: the values on R resamples. An off-policy estimator gives its bootstrap here."""

    def __post_init__(self) -> None:
        size = len(self.policies)
        if self.values.shape != (size,) or self.replicates.ndim != 2 or self.replicates.shape[1] != size:
            raise DataError(
                f"evaluator {self.name}: {size} policies need values [{size}] and replicates [R, {size}], found "
                f"{self.values.shape} and {self.replicates.shape}"
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.replicates).all()):
            raise DataError(f"evaluator {self.name}: a value is not finite; leave the policy out")

    @classmethod
    def of_cases(
        cls, name: str, metrics: Mapping[str, CaseMetric], users: npt.NDArray[np.int64], *, seed: int
    ) -> Evaluator:
        """From a metric a policy over the same cases, `users` int64 [n] being whose they are; resamples users."""
        bootstrap = UserBootstrap(users, n_resamples=1000, seed=seed, confidence=1 - 2 * _TAIL)
        values, replicates = bootstrap.replicates(list(metrics.values()))
        return cls(name=name, policies=tuple(metrics), values=values, replicates=replicates)

    def interval(self, policy: str) -> Interval:
        """Percentile interval of one policy."""
        column = self.policies.index(policy)
        return _interval(float(self.values[column]), self.replicates[:, column])


@dataclass(frozen=True, kw_only=True)
class Discordance:
    """Two policies that two evaluators order differently."""

    better_by_first: str
    better_by_second: str
    sure: bool
    """Both intervals of the difference exclude 0; else it may be noise."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The table of evaluators, and how their orders agree."""

    values: dict[str, dict[str, Interval]]
    """By policy, by evaluator."""
    tau: dict[str, Interval]
    """By `first / second`: Kendall's tau-b over the policies that both judge."""
    discordances: dict[str, list[Discordance]]
    """Likewise: the policies that make tau less than 1."""
    disagreements: list[str]
    """The pairs with a tau below 0.3."""

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def agreement(evaluators: Sequence[Evaluator]) -> Agreement:
    """Compare every two evaluators.

    Raises:
        DataError: two evaluators have fewer than two policies in common.
    """
    policies = list(dict.fromkeys(policy for evaluator in evaluators for policy in evaluator.policies))
    taus: dict[str, Interval] = {}
    discordances: dict[str, list[Discordance]] = {}
    for first, second in combinations(evaluators, 2):
        shared = [policy for policy in first.policies if policy in second.policies]
        if len(shared) < 2:
            raise DataError(f"evaluators {first.name} and {second.name} have {len(shared)} policies in common; give 2")
        one, other = ([e.policies.index(policy) for policy in shared] for e in (first, second))
        count = min(len(first.replicates), len(second.replicates))
        replicates = kendall_tau(first.replicates[:count, one], second.replicates[:count, other])
        value = kendall_tau(first.values[None, one], second.values[None, other])[0]
        pair = f"{first.name} / {second.name}"
        taus[pair] = _interval(float(value), replicates)
        discordances[pair] = _discordances(first, second, shared)
    return Agreement(
        values={
            policy: {e.name: e.interval(policy) for e in evaluators if policy in e.policies} for policy in policies
        },
        tau=taus,
        discordances=discordances,
        disagreements=[pair for pair, tau in taus.items() if tau.value < DISAGREE_BELOW],
    )


def _discordances(first: Evaluator, second: Evaluator, shared: Sequence[str]) -> list[Discordance]:
    found = []
    for one, other in combinations(shared, 2):
        signs, sure = [], []
        for evaluator in (first, second):
            columns = [evaluator.policies.index(one), evaluator.policies.index(other)]
            signs.append(float(np.sign(np.subtract(*evaluator.values[columns]))))
            difference = _interval(0.0, np.subtract(*evaluator.replicates[:, columns].T))
            sure.append(difference.low > 0 or difference.high < 0)
        if signs[0] * signs[1] < 0:
            better, worse = (one, other) if signs[0] > 0 else (other, one)
            found.append(Discordance(better_by_first=better, better_by_second=worse, sure=all(sure)))
    return found


def kendall_tau(first: DoubleArray, second: DoubleArray) -> DoubleArray:
    """float64 [R]: tau-b of each row of two float64 [R, P]; 0 where a row is constant."""
    rows, columns = np.triu_indices(first.shape[1], k=1)
    one = np.sign(first[:, rows] - first[:, columns])
    other = np.sign(second[:, rows] - second[:, columns])
    scale = np.sqrt(np.abs(one).sum(axis=1) * np.abs(other).sum(axis=1))
    return np.asarray(np.divide((one * other).sum(axis=1), scale, out=np.zeros(len(one)), where=scale > 0))


def _interval(value: float, replicates: DoubleArray) -> Interval:
    low, high = np.quantile(replicates, [_TAIL, 1 - _TAIL])
    return Interval(value=value, low=float(low), high=float(high))
