"""Random numbers that follow from what they are for: the same (seed, user, session, step, item) gives the same number.

Two arms that show a user the same item in the same step therefore meet the same luck, whatever else they show and in
whatever order users are simulated; whether anything is taken depends on one number a step, whatever is shown.
Differences between arms then vary much less than with separate streams (common random numbers). The generator is the
finalizer of SplitMix64 (Steele, Lea and Flood, 2014), folded over the parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

KeyArray = npt.NDArray[np.uint64]
DoubleArray = npt.NDArray[np.float64]

NO_CHOICE, LEAVING, DRIFT, SLATE = -1, -2, -3, -4
"""Parts that stand where an item's index would, for what else is drawn."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xD1342543DE82EF95)


def keys(seed: int, *parts: IntArray | int) -> KeyArray:
    """uint64 of the broadcast shape of `parts`, each a whole number, negative ones included."""
    key = _mixed(np.asarray(seed % 2**64, dtype=np.uint64))
    for part in parts:
        key = extended(key, part)
    return key


def extended(key: KeyArray, part: IntArray | int) -> KeyArray:
    """Keys with one more part."""
    number = np.asarray(part, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        # The factor makes the order of parts matter: a sum alone would give seed 7, user 8 the luck of seed 8, user 7.
        return _mixed(key * _FACTOR + _GOLDEN + _mixed(number))


def uniform(key: KeyArray) -> DoubleArray:
    """float64 in (0, 1), both ends excluded."""
    return np.asarray(((key >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def gumbel(key: KeyArray) -> DoubleArray:
    """float64, standard Gumbel: the largest of logits plus these is distributed as their softmax."""
    return np.asarray(-np.log(-np.log(uniform(key))))


def normal(key: KeyArray) -> DoubleArray:
    """float64, standard normal (Box and Muller)."""
    radius = np.sqrt(-2 * np.log(uniform(key)))
    return np.asarray(radius * np.cos(2 * np.pi * uniform(extended(key, 1))))


def _mixed(key: KeyArray) -> KeyArray:
    with np.errstate(over="ignore"):
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(key ^ (key >> np.uint64(31)))
