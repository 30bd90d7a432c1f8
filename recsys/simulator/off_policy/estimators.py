"""Estimators for rounds with one action. Pure functions of four numbers a round; know no policies and no intervals.

With w = target / logged probability of the action taken, r its reward, q(x, a) a model of the reward,
v = sum over a of target(a | x) q(x, a) and g = r - q(x, action taken):

    on-policy   mean r                        direct (DM)  mean v
    IPS         mean w r                      DR           mean (v + w g)
    SNIPS       sum w r / sum w               SNDR         mean v + sum w g / sum w
    shrunken    w' in place of w:  clipped min(w, c);  Switch w 1[w <= c];  optimistic (DRos) c w / (w^2 + c);
                sub-Gaussian w / (1 - c + c w)

Every estimate is a sum of ratios of sums over rounds (`Terms`), which is what intervals are made from.

IPS: Horvitz and Thompson, 1952. SNIPS: Swaminathan and Joachims, NeurIPS 2015. DR: Dudik et al., ICML 2011. Switch:
Wang, Agarwal and Dudik, ICML 2017. DRos: Su et al., ICML 2020. Sub-Gaussian: Metelli, Russo and Restelli, NeurIPS 2021.
Replay: Li et al., WSDM 2011. Names as in Open Bandit Pipeline (Saito et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from recsys.evaluation.metrics import CaseMetric
from recsys.simulator.off_policy.log import FloatArray

Terms: TypeAlias = tuple[CaseMetric, ...]
"""An estimate as a sum of ratios, each of a numerator and a denominator summed over rounds."""

Shrinkage: TypeAlias = Callable[[FloatArray, float], FloatArray]
"""Weights float64 [n] and a parameter to smaller weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """What the estimators read, float64 [n] each."""

    rewards: FloatArray
    weights: FloatArray
    """Target by logged probability of the action taken."""
    predicted: FloatArray
    """q of the action taken."""
    values: FloatArray
    """v: what the reward model expects under the target."""


def estimate(terms: Terms) -> float:
    """The value of a sum of ratios."""
    return float(sum(_ratio(term) for term in terms))


def influence(terms: Terms) -> FloatArray:
    """float64 [n], of mean 0: by how much each round moves the estimate, to first order, times n (delta method)."""
    parts = [
        np.divide(term.numerator - _ratio(term) * term.denominator, term.denominator.mean())
        for term in terms
        if term.denominator.any()
    ]
    return np.sum(parts, axis=0) if parts else np.zeros(len(terms[0].numerator))


def mean(values: FloatArray) -> Terms:
    """A plain mean over rounds."""
    return (CaseMetric.mean_of(values),)


def on_policy(rounds: Rounds) -> Terms:
    """What the policy that served earned."""
    return mean(rounds.rewards)


def replay(rounds: Rounds, *, seed: int) -> Terms:
    """The mean reward of the rounds that the target would have chosen too.

    A round is kept with probability w / max w, which makes the kept ones a sample of the target. For a target without
    chance and a uniform log that keeps exactly the rounds where both agree.
    """
    limit = rounds.weights.max()
    kept = np.random.default_rng(seed).random(len(rounds.weights)) * limit < rounds.weights
    return (CaseMetric(numerator=kept * rounds.rewards, denominator=kept.astype(np.float64)),)


def ips(rounds: Rounds) -> Terms:
    """Inverse propensity score: without bias where the log supports the target, of high variance."""
    return mean(rounds.weights * rounds.rewards)


def snips(rounds: Rounds) -> Terms:
    """Self-normalised IPS: stays within the range of the rewards."""
    return (CaseMetric(numerator=rounds.weights * rounds.rewards, denominator=rounds.weights),)


def direct(rounds: Rounds) -> Terms:
    """The reward model alone: of low variance, and as wrong as the model."""
    return mean(rounds.values)


def doubly_robust(rounds: Rounds) -> Terms:
    """The reward model, corrected by what the log says about its errors."""
    return mean(rounds.values + rounds.weights * (rounds.rewards - rounds.predicted))


def self_normalised_dr(rounds: Rounds) -> Terms:
    """DR whose correction is self-normalised."""
    correction = rounds.weights * (rounds.rewards - rounds.predicted)
    return (*mean(rounds.values), CaseMetric(numerator=correction, denominator=rounds.weights))


def clip(weights: FloatArray, limit: float) -> FloatArray:
    """min(w, limit)."""
    return np.minimum(weights, limit)


def switch(weights: FloatArray, limit: float) -> FloatArray:
    """w up to the limit, else 0: the reward model alone answers there."""
    return np.where(weights <= limit, weights, 0.0)


def optimistic(weights: FloatArray, parameter: float) -> FloatArray:
    """c w / (w^2 + c): 0 for c = 0, w for an infinite c."""
    if parameter == 0:
        return np.zeros_like(weights)
    return np.asarray(weights / (weights * weights / parameter + 1))


def subgaussian(weights: FloatArray, parameter: float) -> FloatArray:
    """w / (1 - c + c w): w for c = 0, 1 for c = 1."""
    below = 1 - parameter + parameter * weights
    return np.divide(weights, below, out=np.ones_like(weights), where=below > 0)


def shrunken_ips(rounds: Rounds, shrink: Shrinkage, parameter: float) -> Terms:
    """IPS with smaller weights."""
    return mean(shrink(rounds.weights, parameter) * rounds.rewards)


def shrunken_dr(rounds: Rounds, shrink: Shrinkage, parameter: float) -> Terms:
    """DR with smaller weights."""
    return mean(rounds.values + shrink(rounds.weights, parameter) * (rounds.rewards - rounds.predicted))


@dataclass(frozen=True, kw_only=True)
class Shrunken:
    """A family of estimators with one parameter."""

    shrink: Shrinkage
    is_doubly_robust: bool

    def terms(self, rounds: Rounds, parameter: float) -> Terms:
        """The estimator with a parameter."""
        build = shrunken_dr if self.is_doubly_robust else shrunken_ips
        return build(rounds, self.shrink, parameter)

    def lost(self, rounds: Rounds, parameter: float) -> FloatArray:
        """float64 [n], whose mean is what shrinking takes away: the bias, if the log supports the target."""
        errors = rounds.rewards - rounds.predicted if self.is_doubly_robust else rounds.rewards
        return np.asarray((rounds.weights - self.shrink(rounds.weights, parameter)) * errors)

    def parameters(self, rounds: Rounds) -> list[float]:
        """Candidates: quantiles of the weights for limits, a fixed grid for the others."""
        if self.shrink is subgaussian:
            return [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
        if self.shrink is optimistic:
            scale = float(np.square(rounds.weights).mean())
            return [scale * factor for factor in (0.1, 1.0, 10.0, 100.0, 1000.0)] + [np.inf]
        limits = np.quantile(rounds.weights, [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
        return [*np.unique(limits).tolist(), np.inf]


SHRUNKEN: Mapping[str, Shrunken] = {
    "clipped_ips": Shrunken(shrink=clip, is_doubly_robust=False),
    "switch_dr": Shrunken(shrink=switch, is_doubly_robust=True),
    "dros": Shrunken(shrink=optimistic, is_doubly_robust=True),
    "subgaussian_ips": Shrunken(shrink=subgaussian, is_doubly_robust=False),
    "subgaussian_dr": Shrunken(shrink=subgaussian, is_doubly_robust=True),
}
"""By name."""


def _ratio(term: CaseMetric) -> float:
    below = term.denominator.sum()
    return float(term.numerator.sum() / below) if below > 0 else 0.0
