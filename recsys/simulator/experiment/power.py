"""How many users a test needs to see a difference, how long that takes, and what it could see. Normal approximation.

Power is that of the two-sided test: it tends to alpha, and not to half of it, as the difference tends to 0. Where it is
.5 or more the tail on the wrong side is nothing, and sizes are those of the textbook.
"""

from __future__ import annotations

import math

from scipy import optimize, stats

from recsys.errors import ConfigError

_LEAST_SHOWN = 1e-9
"""Standard deviations; smaller differences would take more users than there are people."""


def users_per_arm(
    difference: float, variance: float, *, alpha: float = 0.05, power: float = 0.8, correlation: float = 0.0
) -> int:
    """About 2 (z_{1-alpha/2} + z_power)^2 s^2 (1 - rho^2) / d^2, rounded up; two at least, for a variance needs two.

    Args:
        difference: d, the smallest one that the test must not miss, in the metric's unit.
        variance: s^2 of one user's outcome.
        alpha: of the two-sided test.
        power: the chance to see a difference of that size; above alpha, which chance alone gives.
        correlation: rho of the outcome and what CUPED takes out of it.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """
    if not math.isfinite(difference):
        raise ConfigError(f"difference must be a finite number, got {difference}")
    needed = _spread(variance, alpha, power, correlation)
    if abs(difference) <= _LEAST_SHOWN * math.sqrt(needed):
        raise ConfigError(
            f"difference must be a number other than 0 that users can show, got {difference}: no test can show that "
            "nothing differs at all"
        )
    return max(2, math.ceil(needed / difference**2))


def power_of(
    difference: float, num_per_arm: float, variance: float, *, alpha: float = 0.05, correlation: float = 0.0
) -> float:
    """The chance that so many users an arm show a difference of this size; alpha where there is none.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """
    if not math.isfinite(difference):
        raise ConfigError(f"difference must be a number, got {difference}")
    error = math.sqrt(2 * _variance_left(variance, correlation) / _checked_size(num_per_arm))
    if error == 0:
        return 1.0 if difference else _checked_alpha(alpha)
    return _chance(abs(difference) / error, _checked_alpha(alpha))


def detectable_difference(
    num_per_arm: float, variance: float, *, alpha: float = 0.05, power: float = 0.8, correlation: float = 0.0
) -> float:
    """The smallest difference that so many users an arm show with this power; `users_per_arm` the other way round.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """
    return math.sqrt(_spread(variance, alpha, power, correlation) / _checked_size(num_per_arm))


def detectable_errors(alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference that a test shows with this power, in standard errors of the difference.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """
    if not _checked_alpha(alpha) < power < 1:
        raise ConfigError(
            f"power must lie above alpha ({alpha:g}), which chance alone gives, and below 1, got {power:g}"
        )
    # The textbook's value, which leaves out rejections on the wrong side: the root is no higher.
    enough = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return float(optimize.brentq(lambda errors: _chance(errors, alpha) - power, 0.0, enough, xtol=1e-12))


def days_needed(num_per_arm: int, daily_users: float, share: float = 1.0) -> float:
    """How long two arms take to fill, `num_per_arm` users each.

    Args:
        num_per_arm: see `users_per_arm`.
        daily_users: new users a day, in all.
        share: of them in the test, both arms together.

    Raises:
        ConfigError: nobody would come, or the share is impossible.
    """
    if not daily_users > 0:
        raise ConfigError(f"daily users must be above 0, got {daily_users}")
    if not 0 < share <= 1:
        raise ConfigError(f"share must lie above 0 and be 1 at most, got {share}")
    return 2 * num_per_arm / (daily_users * share)


def _spread(variance: float, alpha: float, power: float, correlation: float) -> float:
    return 2 * detectable_errors(alpha, power) ** 2 * _variance_left(variance, correlation)


def _chance(errors: float, alpha: float) -> float:
    """Of a rejection where the difference is so many of its standard errors, on either side."""
    quantile = stats.norm.ppf(1 - alpha / 2)
    return float(stats.norm.sf(quantile - errors) + stats.norm.cdf(-quantile - errors))


def _variance_left(variance: float, correlation: float) -> float:
    if not (variance >= 0 and math.isfinite(variance)):
        raise ConfigError(f"variance must be 0 or more, got {variance}")
    if not -1 < correlation < 1:
        raise ConfigError(f"correlation must lie between -1 and 1, got {correlation}")
    return variance * (1 - correlation**2)


def _checked_alpha(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}")
    return alpha


def _checked_size(num_per_arm: float) -> float:
    if not num_per_arm >= 2:
        raise ConfigError(f"users per arm must be 2 or more, got {num_per_arm}")
    return num_per_arm
