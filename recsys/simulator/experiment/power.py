"""How many users a test needs to see a difference, how long that takes, and what it could see. Normal approximation."""

from __future__ import annotations

import math

from scipy import stats

from recsys.errors import ConfigError


def users_per_arm(
    difference: float, variance: float, *, alpha: float = 0.05, power: float = 0.8, correlation: float = 0.0
) -> int:
    """2 (z_{1-alpha/2} + z_power)^2 s^2 (1 - rho^2) / d^2, rounded up; two at least, for a variance needs two.

    Args:
        difference: d, the smallest one that the test must not miss, in the metric's unit.
        variance: s^2 of one user's outcome.
        alpha: of the two-sided test.
        power: the chance to see a difference of that size.
        correlation: rho of the outcome and what CUPED takes out of it.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """
    if difference == 0 or not math.isfinite(difference):
        raise ConfigError("difference must be a number other than 0: no test can show that nothing differs at all")
    return max(2, math.ceil(_spread(variance, alpha, power, correlation) / difference**2))


def detectable_difference(
    num_per_arm: float, variance: float, *, alpha: float = 0.05, power: float = 0.8, correlation: float = 0.0
) -> float:
    """The smallest difference that so many users an arm show with this power; `users_per_arm` the other way round.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """
    if not num_per_arm >= 2:
        raise ConfigError(f"users per arm must be 2 or more, got {num_per_arm}")
    return math.sqrt(_spread(variance, alpha, power, correlation) / num_per_arm)


def pairs_needed(difference: float, variance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """The users that a test needs where each is in both arms; `variance` is that of one user's difference."""
    return users_per_arm(difference, variance / 2, alpha=alpha, power=power)


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
    if not (variance >= 0 and math.isfinite(variance)):
        raise ConfigError(f"variance must be 0 or more, got {variance}")
    for name, value in (("alpha", alpha), ("power", power)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {value}")
    if not -1 < correlation < 1:
        raise ConfigError(f"correlation must lie between -1 and 1, got {correlation}")
    quantiles = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return 2 * quantiles**2 * variance * (1 - correlation**2)
