"""How good a reward is: does it order pairs, find the best of N, and mean its probabilities. Trains no reward.

A reward orders a pair with probability p = sigmoid(r_chosen - r_rejected). Every pair is stored with the preferred one
first, so that calibration looks at it from the side that the reward prefers: its confidence max(p, 1 - p), against
whether it was right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from recsys.generator.calibration import expected_calibration_error

FloatArray = npt.NDArray[np.floating]

MOST_ECE = 0.05
"""A reward with a larger calibration error should not be optimised."""
_BINS = 10
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class ProbabilityQuality:
    """How well probabilities fit what happened."""

    ece: float
    """Expected calibration error over ten bins of equal width."""
    brier: float
    """Mean squared difference."""
    nll: float
    """Mean negative log-likelihood, in nats."""


@dataclass(frozen=True, kw_only=True)
class RewardQuality:
    """A reward on pairs that it was not trained on."""

    num_pairs: int
    """How many pairs that says something about."""
    pair_accuracy: float
    """Share of pairs in the right order; a tie counts half."""
    calibration: ProbabilityQuality
    """Of its confidence."""

    @classmethod
    def of(cls, margins: FloatArray) -> Self:
        """From margins r_chosen - r_rejected, float [n]; ValueError when there are none."""
        return cls(num_pairs=len(margins), pair_accuracy=pair_accuracy(margins), calibration=pair_calibration(margins))

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; KeyError or TypeError when it is something else."""
        return cls(**{**facts, "calibration": ProbabilityQuality(**facts["calibration"])})


@dataclass(frozen=True, kw_only=True)
class Miscalibration:
    """A warning for a report: the reward's probabilities cannot be trusted."""

    ece: float | None
    """What was measured; None when nothing was."""
    limit: float
    """The most that is taken."""

    def __str__(self) -> str:
        if self.ece is None:
            return "the reward model's calibration was never measured"
        return f"the reward model's calibration error is {self.ece:.3f}, above {self.limit:g}"


def check_calibrated(quality: RewardQuality | None, limit: float = MOST_ECE) -> Miscalibration | None:
    """A warning when the reward's ECE is above `limit` or was not measured; None when all is well."""
    if quality is None:
        return Miscalibration(ece=None, limit=limit)
    ece = quality.calibration.ece
    return Miscalibration(ece=ece, limit=limit) if ece > limit else None


def probability_quality(
    probabilities: FloatArray, happened: npt.NDArray[np.bool_], bins: int = _BINS
) -> ProbabilityQuality:
    """ECE, Brier score and negative log-likelihood of float [n] in 0..1 against bool [n]."""
    probabilities = probabilities.astype(np.float64)
    likelihood = np.where(happened, probabilities, 1 - probabilities)
    return ProbabilityQuality(
        ece=expected_calibration_error(probabilities, happened, bins, equal_width=True),
        brier=float(np.square(probabilities - happened).mean()),
        nll=float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()),
    )


def pair_accuracy(margins: FloatArray) -> float:
    """Share of margins above 0, float [n]; a tie counts half."""
    _check_margins(margins)
    return float((margins > 0).mean() + 0.5 * (margins == 0).mean())


def pair_calibration(margins: FloatArray, bins: int = _BINS) -> ProbabilityQuality:
    """Of the confidence sigmoid(|margin|) against whether the margin is above 0, float [n]."""
    _check_margins(margins)
    return probability_quality(special.expit(np.abs(margins.astype(np.float64))), margins > 0, bins)


def margin_scale(margins: FloatArray) -> float:
    """The factor in 0.01..100 of a reward under which held-out pairs are likeliest: its temperature, inverted.

    Args:
        margins: float [n], of pairs that are neither trained on nor reported.
    """
    _check_margins(margins)
    found = optimize.minimize_scalar(
        lambda log_scale: float(np.logaddexp(0, -np.exp(log_scale) * margins.astype(np.float64)).mean()),
        bounds=(np.log(0.01), np.log(100)),
        method="bounded",
    )
    return float(np.exp(found.x))


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """What choosing the best of N by the reward comes to."""

    accuracy: float
    """Share of groups whose chosen one is (among) the truly best: RewardBench 2 has N = 4."""
    value: float
    """Mean true value of the chosen ones."""
    random: float
    """Mean true value of all: what chance would choose."""
    oracle: float
    """Mean true value of the best ones."""


def best_of_n(rewards: FloatArray, values: FloatArray) -> BestOfN:
    """Choose by `rewards` and judge by true `values`, both float [groups, N]; of equal rewards the first is chosen."""
    if rewards.shape != values.shape or rewards.ndim != 2 or rewards.size == 0:
        raise ValueError(f"rewards {rewards.shape} and values {values.shape} must be [groups, N] and not empty")
    chosen = np.take_along_axis(values, rewards.argmax(axis=1)[:, None], axis=1)[:, 0]
    best = values.max(axis=1)
    return BestOfN(
        accuracy=float((chosen == best).mean()),
        value=float(chosen.mean()),
        random=float(values.mean()),
        oracle=float(best.mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a linear classifier reads out of a frozen representation."""

    accuracy: float
    """Cross-validated."""
    majority: float
    """Share of the most frequent label: what needs no representation."""


def probes(representations: FloatArray, dimensions: Mapping[str, npt.NDArray[np.integer]]) -> dict[str, Probe]:
    """One probe a dimension: does a reward model's representation know it? (MRMBench's probing.)

    Args:
        representations: float [n, F], frozen.
        dimensions: by name labels int [n], each with two labels or more and five cases a label.

    Raises:
        ValueError: a dimension is not of n cases, or has too few of a label.
    """
    found = {}
    for name, labels in dimensions.items():
        counts = np.unique(labels, return_counts=True)[1]
        if len(labels) != len(representations) or len(counts) < 2 or counts.min() < _FOLDS:
            raise ValueError(
                f"dimension {name!r}: needs one label for each of {len(representations)} cases, two labels or more "
                f"and {_FOLDS} cases of each; found {len(labels)} cases, {counts.tolist()} by label"
            )
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
        accuracy = cross_val_score(classifier, representations, labels, cv=folds).mean()
        found[name] = Probe(accuracy=float(accuracy), majority=float(counts.max() / counts.sum()))
    return found


def _check_margins(margins: FloatArray) -> None:
    if margins.ndim != 1 or len(margins) == 0 or not np.isfinite(margins).all():
        raise ValueError(f"margins must be finite, one for each of one or more pairs; found shape {margins.shape}")
