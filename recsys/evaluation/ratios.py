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

_LEAST_USERS = 2


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
            denominators: [num_users], above 0, such as all lists of each user.

        Raises:
            ValueError: there are no users, the shapes differ, or a denominator is not above 0.
        """
        above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
        if above.ndim != 1 or above.shape != below.shape or not len(above) or not (below > 0).all():
            raise ValueError(
                "numerators and denominators must be of the same one or more users, with denominators above 0"
            )
        value = above.sum() / below.sum()
        variance = np.nan
        if len(above) >= _LEAST_USERS:
            # To first order the ratio is its value plus the mean of these, whose own mean is 0.
            influence = (above - value * below) / below.mean()
            variance = influence @ influence / (len(above) - 1) / len(above)
        return cls(value=float(value), variance=float(variance), num_users=len(above))


def ratio_difference(first: UserRatio, second: UserRatio, confidence: float = 0.95) -> Interval | None:
    """First minus second, with Welch's interval: the groups are independent and their variances differ.

    Args:
        first: of one group.
        second: of the other.
        confidence: of the interval, such as .95.

    Returns:
        None where nothing can be said: a group has fewer than two users, or in both all users are alike.
    """
    total = first.variance + second.variance
    if not total > 0:  # also where it is not a number
        return None
    parts = [(group.variance**2) / (group.num_users - 1) for group in (first, second)]
    freedom = total**2 / sum(parts)
    margin = float(stats.t.ppf((1 + confidence) / 2, freedom)) * total**0.5
    value = first.value - second.value
    return Interval(value=value, low=value - margin, high=value + margin)
