"""Rates of two groups of users, and how far they are apart. Knows nothing of what is counted.

A rate is a ratio of sums over users, such as lists with a click by lists. Users were assigned at random and not lists,
and the lists of one user are not independent: the variance is that of users, by the delta method. With one list a user
all of this is Welch's t interval of two means.

Deng, Knoblich and Lu, "Applying the delta method in metric analytics", KDD 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.evaluation.bootstrap import Interval

FloatArray = npt.NDArray[np.float64]

_LEAST_USERS = 2


def user_values(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> FloatArray:
    """A number a user whose mean is the ratio of the sums, and whose variance that of the ratio for n users is n times.

    To first order the ratio of sums is such a mean (the delta method), so that whatever is done with means of users can
    be done with ratios. With denominators of 1 they are the numerators.

    Args:
        numerators: [num_users], such as lists with a click of each user.
        denominators: [num_users], 0 or more, such as all lists of each user; not all 0.

    Returns:
        float64 [num_users]; who has a denominator of 0 and nothing above it does not move the ratio.

    Raises:
        ValueError: there are no users, the shapes differ, a denominator is below 0, or all of them are 0.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape or not (below >= 0).all() or not below.sum() > 0:
        raise ValueError(
            "numerators and denominators must be of the same one or more users, with denominators of 0 or more that "
            "are not all 0"
        )
    value = above.sum() / below.sum()
    return np.asarray(value + (above - value * below) / below.mean())


@dataclass(frozen=True, kw_only=True)
class UserRatio:
    """A ratio of sums over independent users."""

    value: float
    """Sum of the numerators by sum of the denominators."""
    variance: float
    """Of `value`, by the delta method; NaN for fewer than two users."""
    num_users: int

    @classmethod
    def of(cls, numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> UserRatio:
        """The ratio of some users.

        Args:
            numerators: [num_users], such as lists with a click of each user.
            denominators: [num_users], 0 or more, such as all lists of each user; not all 0.

        Raises:
            ValueError: see `user_values`.
        """
        return cls.of_values(user_values(numerators, denominators))

    @classmethod
    def of_values(cls, values: npt.ArrayLike) -> UserRatio:
        """The mean of one number a user, [num_users]; see `user_values`."""
        numbers = np.asarray(values, dtype=np.float64)
        variance = numbers.var(ddof=1) / len(numbers) if len(numbers) >= _LEAST_USERS else np.nan
        return cls(value=float(numbers.mean()), variance=float(variance), num_users=len(numbers))


def welch(first: UserRatio, second: UserRatio) -> tuple[float, float] | None:
    """Standard error and degrees of freedom of a difference between independent groups whose variances differ.

    Returns:
        None where nothing can be said: a group has fewer than two users, or in both all users are alike.
    """
    total = first.variance + second.variance
    if not total > 0:  # also where it is not a number
        return None
    parts = [(group.variance**2) / (group.num_users - 1) for group in (first, second)]
    return total**0.5, total**2 / sum(parts)


def ratio_difference(first: UserRatio, second: UserRatio, confidence: float = 0.95) -> Interval | None:
    """First minus second, with Welch's interval: the groups are independent and their variances differ.

    Args:
        first: of one group.
        second: of the other.
        confidence: of the interval, such as .95.

    Returns:
        None where nothing can be said; see `welch`.
    """
    error = welch(first, second)
    if error is None:
        return None
    margin = float(stats.t.ppf((1 + confidence) / 2, error[1])) * error[0]
    value = first.value - second.value
    return Interval(value=value, low=value - margin, high=value + margin)
