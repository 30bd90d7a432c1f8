"""The protocol of everything that cleans pairs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.alignment.pairs import PreferencePairs


class PairFilter(Protocol):
    """Takes a table of pairs and gives one with fewer rows, or with other weights and noise rates."""

    def __call__(self, pairs: PreferencePairs, /) -> PreferencePairs:
        """The cleaned table; `pairs` stays as it is."""


def composed(*filters: PairFilter) -> PairFilter:
    """The filters one after another; none: all pairs stay as they are."""

    def run(pairs: PreferencePairs, /) -> PreferencePairs:
        for step in filters:
            pairs = step(pairs)
        return pairs

    return run


def with_noise(pairs: PreferencePairs, rates: npt.NDArray[np.float64]) -> PreferencePairs:
    """The same pairs with `label_noise_prob` as given (float64 [P])."""
    return PreferencePairs(frame=pairs.frame.with_columns(pl.Series("label_noise_prob", rates, dtype=pl.Float64)))
