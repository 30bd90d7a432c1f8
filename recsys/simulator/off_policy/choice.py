"""Which of several estimates that trade bias for variance to believe. Knows no estimators.

Both rules read the log alone. SLOPE: Su, Srinath and Krishnamurthy, "Adaptive estimator selection for off-policy
evaluation", ICML 2020, as tuned by Tucker and Lee, 2021. The bound on the mean squared error: Su et al., ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.simulator.off_policy.log import FloatArray


def by_slope(values: Sequence[float], widths: Sequence[float]) -> int:
    """The candidate of smallest width before the first that disagrees with a wider, less biased one.

    Args:
        values: the candidates' estimates.
        widths: half-widths of their intervals, which say nothing of bias.

    Returns:
        Its index. Of candidates with equal widths the first one comes first.

    Raises:
        ValueError: there is none, or the lengths differ.
    """
    if not values or len(values) != len(widths):
        raise ValueError(f"candidates need a value and a width each, got {len(values)} and {len(widths)}")
    order = np.argsort(-np.asarray(widths), kind="stable")
    factor = np.sqrt(6) - 1
    for place in range(1, len(order)):
        new = order[place]
        if any(abs(values[old] - values[new]) > widths[old] + factor * widths[new] for old in order[:place]):
            return int(order[place - 1])
    return int(order[-1])


def squared_error_bound(
    contributions: FloatArray, lost: FloatArray, weights: FloatArray, *, confidence: float | None
) -> float:
    """An estimate of the mean squared error of a mean over n rounds that was shrunk.

    Args:
        contributions: float64 [n], whose mean is the estimate.
        lost: float64 [n], whose mean is its bias.
        weights: float64 [n], before they were shrunk.
        confidence: with which the bias is bounded from above (Bernstein); None takes it as it was estimated.

    Returns:
        Variance plus squared bias.
    """
    n = len(contributions)
    bias = abs(float(lost.mean()))
    if confidence is not None:
        log_odds = np.log(2 / (1 - confidence))
        bias += float(np.sqrt(2 * np.square(weights).mean() * log_odds / n) + 2 * weights.max() * log_odds / (3 * n))
    return float(contributions.var(ddof=1) / n + bias**2) if n > 1 else np.inf
