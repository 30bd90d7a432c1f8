"""Consistency of rankings from one iteration of the model to the next, as soft labels (CREAM, arXiv 2410.12735).

A model that labels its own answers is right to be believed where the model before it ranked them alike. Scores come by
pair, so that nothing can be misaligned by rows that one of the two skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from recsys.alignment.noise.filter import with_noise
from recsys.alignment.pairs import PreferencePairs

Ranker: TypeAlias = Callable[[PreferencePairs], Sequence[Sequence[float]]]
"""For each pair the scores of its answers, the chosen one first, then the rejected ones in their order."""


def consistency(first: Sequence[float], second: Sequence[float]) -> float:
    """(Kendall's tau + 1) / 2 of two rankings of the same answers: 1 = alike, 0 = reversed. Ties count as half.

    Raises:
        ValueError: rankings of different length, or of fewer than two answers.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or len(one) < 2:
        raise ValueError(f"two rankings of the same two or more answers are needed, got {len(one)} and {len(other)}")
    upper = np.triu_indices(len(one), 1)
    agreement = np.sign(one[upper[0]] - one[upper[1]]) * np.sign(other[upper[0]] - other[upper[1]])
    return float((agreement.mean() + 1) / 2)


@dataclass(frozen=True, kw_only=True)
class ConsistencyFilter:
    """Writes 1 - C into `label_noise_prob`, which the loss `cream` reads."""

    current: Ranker
    """The model as it is, for example its implicit rewards."""
    previous: Ranker
    """The model of the iteration before, or another ranker."""
    average: Literal["all", "pair"] = "all"
    """`all`: C is the mean over the pairs, as in the paper; `pair`: each has its own, for lists of several answers."""

    def __call__(self, pairs: PreferencePairs, /) -> PreferencePairs:
        """See the class."""
        if len(pairs) == 0:
            return pairs
        rankings = zip(self.current(pairs), self.previous(pairs), strict=True)
        agreement: npt.NDArray[np.float64] = np.array([consistency(one, other) for one, other in rankings])
        if len(agreement) != len(pairs):
            raise ValueError(f"the rankers gave {len(agreement)} rankings of {len(pairs)} pairs")
        return with_noise(pairs, 1 - (np.full(len(pairs), agreement.mean()) if self.average == "all" else agreement))
