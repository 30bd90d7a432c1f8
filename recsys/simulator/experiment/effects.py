"""What an arm changed, from one number a user: differences, relative lifts, their intervals and p-values.

Ratios come in as `recsys.evaluation.ratios.user_values`, so that a mean and a ratio of sums are the same here. Arms of
different users are compared by Welch's t; two arms that the same users went through (under common random numbers, which
only a simulator can do) by the differences of each user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.errors import DataError
from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.ratios import UserRatio, welch

_LEAST_USERS = 2


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The treatment against the control, in one metric."""

    control: float
    treatment: float
    difference: Interval
    """Treatment minus control."""
    standard_error: float
    """Of the difference; 0 where all users are alike, and the intervals are points."""
    freedom: float
    """Degrees of freedom of the t intervals."""
    p_value: float
    """Of "there is no difference", two-sided."""
    lift: Interval | None
    """The difference relative to the control, by the delta method; None where the control is not above 0."""
    lift_error: float | None
    """Its standard error."""
    num_users: int
    """In both arms; who is in both counts once."""

    def lift_bound(self, level: float) -> float | None:
        """What the relative lift is above with this one-sided confidence; below .5 what it is below with the rest."""
        if self.lift is None or self.lift_error is None:
            return None
        return self.lift.value - float(stats.t.ppf(level, self.freedom)) * self.lift_error


def independent_effect(control: npt.ArrayLike, treatment: npt.ArrayLike, alpha: float = 0.05) -> Effect:
    """Arms of different users, with their own variances (Welch).

    Args:
        control: one number a user, [its users].
        treatment: the same of the other arm.
        alpha: intervals hold the truth with probability 1 - alpha.

    Raises:
        DataError: an arm has fewer than two users.
    """
    before, after = _checked("control", control), _checked("treatment", treatment)
    first, second = UserRatio.of_values(before), UserRatio.of_values(after)
    error = welch(second, first)
    standard_error, freedom = error or (0.0, float(len(before) + len(after) - 2))
    lift_error = None
    if first.value > 0:
        ratio = second.value / first.value
        lift_error = (second.variance + ratio**2 * first.variance) ** 0.5 / first.value
    return _effect(first.value, second.value, standard_error, freedom, lift_error, len(before) + len(after), alpha)


def paired_effect(control: npt.ArrayLike, treatment: npt.ArrayLike, alpha: float = 0.05) -> Effect:
    """The same users in both arms: what they share cancels.

    Args:
        control: one number a user, [num_users].
        treatment: the same users in the same order.
        alpha: intervals hold the truth with probability 1 - alpha.

    Raises:
        DataError: there are fewer than two users, or the arms have not the same number of them.
    """
    before, after = _checked("control", control), _checked("treatment", treatment)
    if len(before) != len(after):
        raise DataError(f"paired arms need the same users; control has {len(before)}, treatment {len(after)}")
    differences = after - before
    first, second = float(before.mean()), float(after.mean())
    lift_error = None
    if first > 0:
        lift_error = UserRatio.of_values((after - second / first * before) / first).variance ** 0.5
    standard_error = UserRatio.of_values(differences).variance ** 0.5
    return _effect(first, second, standard_error, float(len(before) - 1), lift_error, len(before), alpha)


def _checked(arm: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < _LEAST_USERS:
        raise DataError(f"the {arm} has {numbers.size} users; an effect needs two or more in each arm")
    if bad := np.flatnonzero(~np.isfinite(numbers)).tolist():
        raise DataError(f"the {arm} has outcomes that are no finite numbers, in rows {bad[:5]} ({len(bad)} in all)")
    return numbers


def _effect(
    control: float,
    treatment: float,
    standard_error: float,
    freedom: float,
    lift_error: float | None,
    num_users: int,
    alpha: float,
) -> Effect:
    value = treatment - control
    quantile = float(stats.t.ppf(1 - alpha / 2, freedom))
    if standard_error > 0:
        p_value = 2 * float(stats.t.sf(abs(value) / standard_error, freedom))
    else:
        p_value = 1.0 if value == 0 else 0.0
    lift = None
    if lift_error is not None:
        relative = treatment / control - 1
        lift = Interval(value=relative, low=relative - quantile * lift_error, high=relative + quantile * lift_error)
    return Effect(
        control=control,
        treatment=treatment,
        difference=Interval(value=value, low=value - quantile * standard_error, high=value + quantile * standard_error),
        standard_error=standard_error,
        freedom=freedom,
        p_value=p_value,
        lift=lift,
        lift_error=lift_error,
        num_users=num_users,
    )
