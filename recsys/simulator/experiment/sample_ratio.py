"""Do the counts of users in the arms fit the plan? If they do not, nothing else that an experiment says can be trusted.

Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019. For counts that are
looked at again and again: Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import special, stats

MISMATCH = 0.001
"""Below this p-value something is wrong with the assignment or the log."""
_CONCENTRATION = 10_000.0
"""Of the Dirichlet prior around the planned shares: a mismatch is expected to be small."""

FloatArray = npt.NDArray[np.float64]


def sample_ratio_p_value(observed: Mapping[str, int], shares: Mapping[str, int]) -> float:
    """How likely counts at least this far from the shares are by chance: Pearson's chi-square test.

    Below .001 something is wrong with the assignment or the log (sample ratio mismatch), and the experiment says
    nothing: Fabijan et al., "Diagnosing sample ratio mismatch", KDD 2019.

    Args:
        observed: units in each arm.
        shares: buckets of each arm, above 0.

    Raises:
        ValueError: the arms are not the same, or there are fewer than two of them or no units.
    """
    if observed.keys() != shares.keys() or len(shares) < 2 or not sum(observed.values()) or min(shares.values()) <= 0:
        raise ValueError("observed and shares need the same two or more arms, with units and shares above 0")
    total, whole = sum(observed.values()), sum(shares.values())
    expected = [total * shares[arm] / whole for arm in observed]
    return float(stats.chisquare(list(observed.values()), expected).pvalue)


def sequential_sample_ratio(
    counts: npt.ArrayLike, shares: npt.ArrayLike, concentration: float = _CONCENTRATION
) -> FloatArray:
    """P-values of counts that are looked at while they grow; an alarm at any look keeps its promise over all of them.

    At each look the Bayes factor of "the shares are others" (Dirichlet-multinomial) against the planned shares
    (multinomial); the p-value is the least of 1 / factor so far, and at most 1.

    Args:
        counts: [looks, arms], users in each arm up to each look, never falling.
        shares: [arms], above 0; only their proportions count.
        concentration: of the prior around the shares, in users.

    Returns:
        float64 [looks].

    Raises:
        ValueError: the shapes do not fit, counts fall, or a share is not above 0.
    """
    seen, parts = np.asarray(counts, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    if seen.ndim != 2 or parts.shape != seen.shape[1:] or len(parts) < 2 or not (parts > 0).all():
        raise ValueError("counts must be [looks, arms] and shares [arms], two or more arms, with shares above 0")
    if (np.diff(seen, axis=0, prepend=0) < 0).any():
        raise ValueError("counts must be totals up to each look; they fall")
    planned = parts / parts.sum()
    prior = concentration * planned
    log_factor = (
        special.gammaln(concentration)
        - special.gammaln(concentration + seen.sum(axis=1))
        + (special.gammaln(prior + seen) - special.gammaln(prior) - seen * np.log(planned)).sum(axis=1)
    )
    return np.minimum.accumulate(np.exp(-np.maximum(log_factor, 0.0)))
