"""A conditional logit over candidates: the one that is chosen, or none of them. Knows features, no sources.

The probability of candidate i of a history is `exp(u_i) / (exp(u_0) + sum_j exp(u_j))` with `u_i = w x_i`, and `u_0`
the utility of everything that is not a candidate (McFadden, 1974, with an outside option). The probabilities are of
the item being the next one, not of its being so given that it was found, so those of a list add up to less than 1.

Shapes: B histories, M candidates, F features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError, DataError
from recsys.files import write_json
from recsys.retrieval.features import Candidates

_FORMAT = 1
_FILE = "ranker.json"

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ConditionalLogit:
    """A fitted ranker."""

    names: tuple[str, ...]
    """The F features."""
    weights: Float64Array
    """float64 [F], of the features as they are."""
    outside: float
    """Utility of everything that is not a candidate."""

    def log_probabilities(self, candidates: Candidates) -> Float64Array:
        """float64 [M]."""
        utilities = candidates.features @ self.weights
        owners = candidates.owners
        return np.asarray(utilities - _log_totals(utilities, self.outside, owners, len(candidates))[owners])

    def save(self, directory: Path, report: dict[str, Any]) -> None:
        """Write into an existing directory, with what a `RankerFit` says of itself."""
        facts = {"format": _FORMAT, "weights": dict(zip(self.names, self.weights.tolist(), strict=True))}
        write_json(directory / _FILE, {**facts, "outside": self.outside, "report": report})

    @classmethod
    def load(cls, directory: Path) -> ConditionalLogit:
        """Read what `save` wrote. Raises ArtifactError when it is missing or damaged."""
        try:
            facts = json.loads((directory / _FILE).read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(f"ranker: {directory} has format {facts['format']}, this version reads {_FORMAT}")
            weights = facts["weights"]
            return cls(
                names=tuple(weights),
                weights=np.array([float(weight) for weight in weights.values()]),
                outside=float(facts["outside"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"ranker: cannot read {directory}: {error}; make it again") from error


def fit_logit(
    candidates: Candidates,
    chosen: IntArray,
    names: tuple[str, ...],
    *,
    penalty: float,
    start: ConditionalLogit | None = None,
) -> ConditionalLogit:
    """Maximise the mean log-likelihood minus `penalty` times the squared weights of standardised features.

    Args:
        candidates: of B cases.
        chosen: int64 [B]: the place of each case's item among the M candidates; -1 when it is none of them.
        names: of the F features.
        penalty: not negative.
        start: where to begin; changes time, not the result.

    Raises:
        DataError: there is no case.
    """
    if len(candidates) == 0:
        raise DataError("the ranker needs validation cases and there are none; use a split that has them")
    features = candidates.features.astype(np.float64)
    scale = features.std(axis=0)
    scale[scale < 1e-9] = 1.0
    centre = features.mean(axis=0)
    features -= centre
    features /= scale
    owners, num_cases = candidates.owners, len(candidates)
    found = chosen[chosen >= 0]
    num_missed = int((chosen < 0).sum())
    first = features[found].sum(axis=0)

    def objective(parameters: Float64Array) -> tuple[float, Float64Array]:
        weights, outside = parameters[:-1], parameters[-1]
        utilities = features @ weights
        totals = _log_totals(utilities, outside, owners, num_cases)
        probabilities = np.exp(utilities - totals[owners])
        likelihood = utilities[found].sum() + num_missed * outside - totals.sum()
        gradient = np.append(first - probabilities @ features, num_missed - np.exp(outside - totals).sum())
        loss = -likelihood / num_cases + penalty * float(weights @ weights)
        return loss, np.append(2 * penalty * weights, 0.0) - gradient / num_cases

    begin = np.zeros(len(scale) + 1)
    if start is not None:
        begin = np.append(start.weights * scale, start.outside - centre @ start.weights)
    result = minimize(
        objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-10, "gtol": 1e-6}
    )
    weights = result.x[:-1] / scale
    return ConditionalLogit(names=names, weights=weights, outside=float(result.x[-1] + centre @ weights))


def log_loss(log_probabilities: Float64Array, candidates: Candidates, chosen: IntArray) -> float:
    """Mean of -log p of what happened, a candidate or none of them, in nats."""
    inside = np.bincount(candidates.owners, np.exp(log_probabilities), len(candidates))
    inside = np.minimum(inside, 1 - 1e-12)
    happened = np.where(chosen >= 0, log_probabilities[np.maximum(chosen, 0)], np.log1p(-inside))
    return float(-happened.mean())


def calibration_error(log_probabilities: Float64Array, chosen: IntArray, num_bins: int = 20) -> float:
    """Expected calibration error over all candidates: bins of equal total probability, |sum p - hits| summed, by all p.

    Nearly all of many candidates are next to impossible; bins of equal width or size would only look at those.
    """
    order = np.argsort(log_probabilities, kind="stable")
    probabilities = np.exp(log_probabilities[order])
    hits = np.zeros(len(order))
    hits[chosen[chosen >= 0]] = 1
    mass = np.cumsum(probabilities)
    middle = (mass - probabilities / 2) / mass[-1]
    bins = np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)
    expected = np.bincount(bins, probabilities, minlength=num_bins)
    observed = np.bincount(bins, hits[order], minlength=num_bins)
    return float(np.abs(expected - observed).sum() / mass[-1])


def _log_totals(utilities: Float64Array, outside: float, owners: IntArray, num_histories: int) -> Float64Array:
    """float64 [B]: log of exp(outside) + sum of exp(utilities) of each history."""
    highest = np.full(num_histories, outside)
    np.maximum.at(highest, owners, utilities)
    shifted = np.exp(utilities - highest[owners])
    return np.asarray(highest + np.log(np.exp(outside - highest) + np.bincount(owners, shifted, num_histories)))
