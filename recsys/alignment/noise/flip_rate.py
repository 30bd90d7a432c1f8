"""How often people contradict themselves: the flip rate, from pairs that one user decided more than once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.alignment.noise.filter import with_noise
from recsys.alignment.pairs import PreferencePairs
from recsys.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FlipRate:
    """An estimate of how many labels are wrong."""

    rate: float
    """Share of labels that are flipped, 0 to 0.5."""
    disagreement: float
    """Share of two decisions of one user about the same two items that differ."""
    num_decisions: int
    """How many times two decisions could be compared."""


def estimate_flip_rate(pairs: PreferencePairs, *, min_decisions: int = 30) -> FlipRate:
    """From repeated exposures: two labels, each flipped with rate e, differ with rate d = 2 e (1 - e).

    So e = (1 - sqrt(1 - 2 d)) / 2. What differs because a taste changed counts as noise too. Each user and two items
    weigh the same, however often they were compared.

    Args:
        pairs: pairs of items, before anything was filtered by agreement.
        min_decisions: fewer comparisons of two decisions than that say nothing.

    Raises:
        DataError: too few pairs were decided twice.
    """
    decisions = (
        pairs.of_items()
        .frame.filter(pl.col("rejected_prompts").list.len() == 0)
        .select("user_id", "chosen_item", "rejected_items")
        .explode("rejected_items")
        .select(
            "user_id",
            pl.min_horizontal("chosen_item", "rejected_items").alias("lower"),
            pl.max_horizontal("chosen_item", "rejected_items").alias("upper"),
            (pl.col("chosen_item") < pl.col("rejected_items")).alias("is_lower"),
        )
        .group_by("user_id", "lower", "upper", maintain_order=True)
        .agg(pl.len().alias("count"), pl.col("is_lower").sum().cast(pl.Int64).alias("for_lower"))
        .filter(pl.col("count") > 1)
    )
    counts, for_lower = (decisions[name].to_numpy().astype(np.float64) for name in ("count", "for_lower"))
    compared = int((counts // 2).sum())
    if compared < min_decisions:
        raise DataError(
            f"flip rate: only {compared} decisions were made twice by the same user, {min_decisions} are needed; give "
            "loss.flip_rate by hand"
        )
    disagreement = float((2 * for_lower * (counts - for_lower) / (counts * (counts - 1))).mean())
    rate = (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2
    return FlipRate(rate=rate, disagreement=disagreement, num_decisions=compared)


@dataclass(frozen=True, kw_only=True)
class FlipRateFilter:
    """Writes the estimate into `label_noise_prob`, which the losses `robust` and `cdpo` read."""

    min_decisions: int = 30
    """See `estimate_flip_rate`."""
    largest: float = 0.45
    """The rate is clipped to it: at 0.5 the robust loss has no finite value."""

    def __call__(self, pairs: PreferencePairs, /) -> PreferencePairs:
        """See the class; raises DataError where too little was decided twice."""
        rate = min(self.largest, estimate_flip_rate(pairs, min_decisions=self.min_decisions).rate)
        return with_noise(pairs, np.full(len(pairs), rate))
