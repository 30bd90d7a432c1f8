"""Less noise by what was known before the test. Knows nothing of arms and metrics.

Deng, Xu, Kohavi and Walker, "Improving the sensitivity of online controlled experiments by utilizing pre-experiment
data" (CUPED), WSDM 2013. The covariate must not depend on the arm: a number from before the exposure, or a
prediction made from such numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Adjusted:
    """Outcomes without what the covariate explains."""

    groups: tuple[FloatArray, ...]
    """Of each group, float64 [its users]; y - theta (x - mean of x over all groups)."""
    theta: float
    """Slope of the outcome over the covariate, within groups; 0 where the covariate is constant."""
    factor: float
    """The variance within groups after by before, 1 - rho^2; 1 where there was none."""


def adjust(outcomes: Sequence[npt.ArrayLike], covariates: Sequence[npt.ArrayLike]) -> Adjusted:
    """Take out of each group's outcomes what the covariate explains, with one slope for all groups.

    Deviations are from the group's own mean, so that an effect of the arm is not mistaken for one of the covariate.

    Args:
        outcomes: of each group, [its users].
        covariates: the same shapes.

    Raises:
        ValueError: there are no groups, the shapes differ, or a group is empty.
    """
    ys = [np.asarray(values, dtype=np.float64) for values in outcomes]
    xs = [np.asarray(values, dtype=np.float64) for values in covariates]
    if not ys or [y.shape for y in ys] != [x.shape for x in xs] or not all(y.ndim == 1 and len(y) for y in ys):
        raise ValueError("outcomes and covariates need the same one or more groups, each with the same users")
    y_within = np.concatenate([y - y.mean() for y in ys])
    x_within = np.concatenate([x - x.mean() for x in xs])
    of_x, of_y, of_both = x_within @ x_within, y_within @ y_within, x_within @ y_within
    theta = float(of_both / of_x) if of_x > 0 else 0.0
    centre = float(np.concatenate(xs).mean())
    factor = 1 - float(theta * of_both / of_y) if of_y > 0 else 1.0
    return Adjusted(
        groups=tuple(y - theta * (x - centre) for x, y in zip(xs, ys, strict=True)), theta=theta, factor=factor
    )
