"""When a session ends: a chance of leaving after each step, by how long it has lasted, failures and success.

    P(leave after step t) = sigmoid(base[bin(t)] + per_null * (steps without a choice in a row) - per_reward * reward)

The base is a step function of t, so that any distribution of lengths can be met: real ones have a long tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import expit

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray
from recsys.errors import DataError

DoubleArray = npt.NDArray[np.float64]

_SINGLE = 4
"""The first steps have a bin each; then a bin spans from each power of two times this to the next."""
_PENALTY = 1e-3


class Patience(StrictConfig):
    """Parameters of the chance of leaving."""

    base: tuple[float, ...] = Field(default=(-2.0,), min_length=1)
    """Log-odds by `length_bin`; later bins are as the last one."""
    per_null: float = 0.2
    """Added for each step without a choice in a row up to now."""
    per_reward: float = 0.0
    """Taken away for a step whose reward is 1."""

    def leaving(self, step: int, nulls: IntArray, rewards: DoubleArray) -> DoubleArray:
        """float64 [B]: the chance of leaving after step `step` (0 = the first)."""
        base = self.base[min(int(length_bin(np.array(step))), len(self.base) - 1)]
        return np.asarray(expit(base + self.per_null * nulls - self.per_reward * rewards))


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaving:
    """What is known of n steps of logged sessions."""

    steps: IntArray
    """int64 [n]: 0 = the session's first."""
    left: npt.NDArray[np.bool_]
    """bool [n]: the session ended after it."""
    weights: DoubleArray
    """float64 [n], above 0, such as 1 over the sessions of the user."""
    nulls: IntArray | None = None
    """int64 [n]: steps in a row without a choice, this one included; None where a log has choices only."""
    rewards: DoubleArray | None = None
    """float64 [n]; None likewise."""

    @classmethod
    def of_lengths(cls, lengths: IntArray, weights: DoubleArray) -> Self:
        """Sessions that are nothing but so many choices: int64 [sessions] from 1, float64 [sessions]."""
        owner = np.repeat(np.arange(len(lengths)), lengths)
        steps = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return cls(steps=steps, left=steps == lengths[owner] - 1, weights=weights[owner])


def length_bin(steps: IntArray) -> IntArray:
    """int64: 0, 1, 2, 3 for the first four steps; 4 for steps 4 to 7, 5 for 8 to 15, and so on."""
    late = _SINGLE + np.floor(np.log2(np.maximum(steps, 1) / _SINGLE)).astype(np.int64)
    return np.where(steps < _SINGLE, steps, late)


def fit_patience(log: Leaving, *, set_per_null: float = Patience().per_null) -> Patience:
    """The likeliest parameters, with a small penalty.

    A log of choices only says how long sessions last and nothing of nulls and rewards: `per_null` is then
    `set_per_null`, and `per_reward` 0.

    Raises:
        DataError: there is no step.
    """
    if len(log.steps) == 0:
        raise DataError("patience: there is no step of a session to fit it on")
    bins = length_bin(log.steps)
    num_bins = int(bins.max()) + 1
    # A step is its bin and, where they are known, two numbers; steps of one kind are counted together.
    more = None if log.nulls is None or log.rewards is None else np.stack([log.nulls, -log.rewards], axis=1)
    extra = np.zeros((len(bins), 0)) if more is None else more.astype(np.float64)
    weights = log.weights / log.weights.sum()
    left = log.left.astype(np.float64)

    def objective(parameters: DoubleArray) -> tuple[float, DoubleArray]:
        odds = parameters[bins] + extra @ parameters[num_bins:]
        loss = weights @ (np.logaddexp(0, odds) - left * odds) + _PENALTY * parameters @ parameters / len(bins)
        error = weights * (expit(odds) - left)
        gradient = np.concatenate([np.bincount(bins, error, num_bins), error @ extra])
        return float(loss), gradient + 2 * _PENALTY * parameters / len(bins)

    found = minimize(objective, np.zeros(num_bins + extra.shape[1]), jac=True, method="L-BFGS-B").x.tolist()
    per_null, per_reward = (set_per_null, 0.0) if more is None else found[num_bins:]
    return Patience(base=tuple(found[:num_bins]), per_null=per_null, per_reward=per_reward)
