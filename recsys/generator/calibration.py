"""Probabilities that mean what they say: one temperature, fitted on validation cases, and how far off they are.

The temperature scales the logits of every step (Guo et al. 2017, arXiv 1706.04599, section 4.2, taken at each node of
the trie), not the probability of an item as a whole: at every temperature the probabilities of all items sum to 1,
without a sum over the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.generator.scoring import Step
from recsys.generator.walk import temper

_LOWEST, _HIGHEST = 0.05, 20.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a fit found."""

    temperature: float
    """Pass it to `recommend`."""
    nll_before: float
    """Mean negative log-likelihood of the true next item, in nats, at temperature 1."""
    nll_after: float
    """The same at `temperature`; never more on the cases of the fit."""


def fit_temperature(steps: Sequence[Sequence[Step]]) -> Calibration:
    """The temperature in 0.05..20 with the highest likelihood.

    Args:
        steps: of each batch of cases, the `scoring.forced_steps` to their true next items.

    Raises:
        ValueError: no cases.
    """
    num_cases = sum(len(batch[0].slots) for batch in steps)
    if num_cases == 0:
        raise ValueError("calibration needs at least one case with a true next item")

    def nll(inverse: float) -> float:
        total = 0.0
        for batch in steps:
            for step in batch:
                tempered = temper(step.log_probs.double(), 1.0 / inverse)
                total -= float(tempered.gather(1, step.slots.unsqueeze(1)).sum())
        return total / num_cases

    # Convex in the inverse temperature, so that thirds close in on the lowest point.
    low, high = 1.0 / _HIGHEST, 1.0 / _LOWEST
    while high - low > 1e-4 * high:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if nll(left) <= nll(right):
            high = right
        else:
            low = left
    best = (low + high) / 2
    before, after = nll(1.0), nll(best)
    if after > before:
        best, after = 1.0, before
    return Calibration(temperature=1.0 / best, nll_before=before, nll_after=after)


def expected_calibration_error(
    probabilities: npt.NDArray[np.floating],
    hits: npt.NDArray[np.bool_],
    bins: int = 15,
    *,
    equal_width: bool = False,
) -> float:
    """Mean over cases of |mean probability - share of hits| in their bin.

    Args:
        probabilities: [n], of listed items, for example all places of all lists.
        hits: bool [n]: the item was the true next one.
        bins: how many; fewer when there are fewer cases.
        equal_width: bins are stretches of 0..1 of one width, as in the literature on classifiers; otherwise they hold
            equally many cases, which suits the small probabilities of one item among thousands.

    Raises:
        ValueError: no cases, or arrays of different length.
    """
    if len(probabilities) == 0 or probabilities.shape != hits.shape:
        raise ValueError(
            f"probabilities {probabilities.shape} and hits {hits.shape} must be equally long, and not empty"
        )
    if equal_width:
        owners = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
        parts = [np.flatnonzero(owners == number) for number in range(bins)]
    else:
        parts = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(probabilities)))
    error = sum(abs(float(probabilities[rows].sum()) - float(hits[rows].sum())) for rows in parts)
    return error / len(probabilities)
