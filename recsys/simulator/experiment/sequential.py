"""Looking at a test while it runs, as often as one likes, without raising false alarms. Works on numbers and arrays.

An interval for a fixed sample holds at one look that was planned; who stops at the first look that pleases rejects far
too often. A confidence sequence holds at all looks together. Asymptotic sequences: Waudby-Smith et al., "Time-uniform
central limit theory and asymptotic confidence sequences", Annals of Statistics 2024. mSPRT: Johari et al., "Peeking at
A/B tests", KDD 2017.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_LARGEST_EXPONENT = 700.0
"""Beyond it the ratio would be no number, and below it no doubt is left."""
TUNING_USERS = 5000
"""Where sequences are narrowest by default, in users of all arms together."""


def mixing_scale(alpha: float, tuning_users: float = TUNING_USERS) -> float:
    """rho of the sequence that is narrowest near `tuning_users`; it must be chosen before the test begins.

    Raises:
        ValueError: alpha does not lie between 0 and 1, or there are no tuning users.
    """
    if not (0 < alpha < 1 and tuning_users > 0):
        raise ValueError("alpha must lie between 0 and 1, and tuning_users above 0")
    twice = -2 * math.log(alpha)
    return math.sqrt((twice + math.log(twice + 1)) / tuning_users)


def sequence_half_width(
    num_users: npt.ArrayLike, variance: npt.ArrayLike, alpha: float = 0.05, tuning_users: float = TUNING_USERS
) -> FloatArray:
    """Half the width of the two-sided confidence sequence at some numbers of users.

    Args:
        num_users: n > 0, of both arms together, or pairs in a paired test.
        variance: n times the squared standard error of the estimate at that look.
        alpha: the promise: all intervals, at all looks, hold the truth with probability 1 - alpha.
        tuning_users: see `mixing_scale`.
    """
    n = np.asarray(num_users, dtype=np.float64)
    rho_squared = mixing_scale(alpha, tuning_users) ** 2
    spread = n * rho_squared + 1
    per_variance = 2 * spread * (0.5 * np.log(spread) - math.log(alpha)) / (n**2 * rho_squared)
    return np.sqrt(np.asarray(variance, dtype=np.float64) * per_variance)


def always_valid_p_values(
    estimates: npt.ArrayLike,
    num_users: npt.ArrayLike,
    variance: npt.ArrayLike,
    alpha: float = 0.05,
    tuning_users: float = TUNING_USERS,
) -> FloatArray:
    """At each look, the smallest level whose sequence has excluded 0 by then. Never rises; at most 1.

    rho stays that of `alpha`: a sequence tuned anew for each level would be no sequence.

    Args:
        estimates: [looks], in the order of the looks.
        num_users: [looks], n > 0.
        variance: [looks], n times the squared standard error; 0 says that the estimate is exact.
        alpha: the level that the sequence is tuned for.
        tuning_users: see `mixing_scale`.
    """
    d, n = np.asarray(estimates, dtype=np.float64), np.asarray(num_users, dtype=np.float64)
    rho_squared = mixing_scale(alpha, tuning_users) ** 2
    spread = n * rho_squared + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = d**2 / np.asarray(variance, dtype=np.float64)
    squared = np.where(d == 0, 0.0, squared)  # also where 0 is exact
    log_p = 0.5 * np.log(spread) - squared * n**2 * rho_squared / (2 * spread)
    return np.minimum.accumulate(np.exp(np.minimum(log_p, 0.0)))


def msprt_likelihood_ratio(
    num_users: npt.ArrayLike, differences: npt.ArrayLike, variance: npt.ArrayLike, mixing_variance: float
) -> FloatArray:
    """How much likelier the difference is under a normal mixture of effects than under none.

    Args:
        num_users: n of *each* arm.
        differences: of the arms' means.
        variance: of one user's outcome, above 0.
        mixing_variance: tau^2 of the effects that are expected, above 0.
    """
    n, d = np.asarray(num_users, dtype=np.float64), np.asarray(differences, dtype=np.float64)
    s2 = np.asarray(variance, dtype=np.float64)
    whole = 2 * s2 + n * mixing_variance
    exponent = n**2 * mixing_variance * d**2 / (4 * s2 * whole)
    return np.sqrt(2 * s2 / whole) * np.exp(np.minimum(exponent, _LARGEST_EXPONENT))


def msprt_p_values(likelihood_ratios: npt.ArrayLike) -> FloatArray:
    """Always-valid p-values of a test's likelihood ratios, [looks] in their order: never rising, at most 1."""
    with np.errstate(divide="ignore"):
        inverse = 1 / np.asarray(likelihood_ratios, dtype=np.float64)
    return np.minimum.accumulate(np.minimum(inverse, 1.0))
