"""Whether a log can answer at all. An estimate is shown with these numbers, or refused because of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.simulator.off_policy.log import FloatArray

SUPPORTED = 1e-4
"""Actions of a lower logged probability do not support an estimate."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a number would mislead."""

    min_ess_share: float = 0.05
    """Of the effective sample size in the rounds."""
    min_support: float = 0.95
    """Of the target's choices, those that the log could have taken."""
    max_standard_errors: float = 3.0
    """By which the mean weight, or the slope of the calibration, may miss 1 before propensities are not believed."""
    max_slope_error: float = 0.05
    """By which the slope of the calibration may miss 1 besides."""


@dataclass(frozen=True, kw_only=True)
class WeightDiagnostics:
    """What the weights of n rounds say of the log."""

    num_rounds: int
    mean_weight: float
    """1 if the propensities are right and the log supports the target."""
    mean_weight_error: float
    """Its standard error."""
    effective_size: float
    """(sum w)^2 / sum w^2: so many rounds of the target itself would say as much (Kish, 1965)."""
    effective_share: float
    """Of the rounds."""
    max_weight: float
    max_weight_share: float
    """Of the largest weight in the sum of all."""
    top_percent_share: float
    """Of the largest hundredth of the weights in their sum; 0.01 if all are alike."""
    support: float | None
    """Share of the target's choices that the log could have taken; None where the whole policy that served is unknown:
    then the mean weight must do."""

    @classmethod
    def of(cls, weights: FloatArray, support: float | None = None) -> WeightDiagnostics:
        """Of weights float64 [n], 0 or more."""
        n, total = len(weights), float(weights.sum())
        squares = float(np.square(weights).sum())
        top = max(1, n // 100)
        return cls(
            num_rounds=n,
            mean_weight=total / n,
            mean_weight_error=float(weights.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf,
            effective_size=total**2 / squares if squares else 0.0,
            effective_share=total**2 / squares / n if squares else 0.0,
            max_weight=float(weights.max()),
            max_weight_share=float(weights.max() / total) if total else 0.0,
            top_percent_share=float(np.partition(weights, n - top)[n - top :].sum() / total) if total else 0.0,
            support=support,
        )

    def problem(self, limits: Limits) -> str | None:
        """Why no estimate can be made from these weights; None if one can."""
        margin = limits.max_standard_errors * self.mean_weight_error
        if self.support is not None and self.support < limits.min_support:
            return (
                f"the log could have taken only {self.support:.1%} of what the target chooses "
                f"(at least {limits.min_support:.0%} are needed); log with more exploration"
            )
        if self.effective_share < limits.min_ess_share:
            return (
                f"the {self.num_rounds:,} rounds are worth {self.effective_size:,.1f} of the target's own "
                f"({self.effective_share:.2%}, at least {limits.min_ess_share:.0%} are needed): the policies differ "
                "too much; log with more exploration, or test a target that is closer"
            )
        if self.mean_weight + margin < limits.min_support:
            return (
                f"the mean weight is {self.mean_weight:.3f} where it should be 1: the target chooses what the log "
                "never shows, or the propensities are wrong"
            )
        if self.mean_weight - margin > 1 / limits.min_support:
            return (
                f"the mean weight is {self.mean_weight:.3f} where it should be 1: the propensities, or what stands for "
                "them, are wrong"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class ModelDiagnostics:
    """How a reward model fares on rounds that it was not fitted on."""

    bias: float
    """Mean of the prediction minus the reward."""
    slope: float
    """Of the rewards over the predictions: 1 if differences between predictions mean what they say; 0 without any."""

    @classmethod
    def of(cls, predicted: FloatArray, rewards: FloatArray) -> ModelDiagnostics:
        """Of float64 [n] each."""
        spread = predicted - predicted.mean()
        scale = float(spread @ spread)
        is_flat = scale <= 1e-12 * len(predicted) * max(1.0, float(np.square(predicted).mean()))
        return cls(
            bias=float((predicted - rewards).mean()),
            slope=0.0 if is_flat else float(spread @ rewards / scale),
        )


def support_of(target: FloatArray, behaviour: FloatArray, context_shares: FloatArray) -> float:
    """Share of the target's choices that the policy that served takes with a probability above `SUPPORTED`.

    Args:
        target: float64 [C, K].
        behaviour: float64 [C, K].
        context_shares: float64 [C], of each context in the rounds, of sum 1.
    """
    return float(context_shares @ np.where(behaviour > SUPPORTED, target, 0.0).sum(axis=1))
