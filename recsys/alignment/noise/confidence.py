"""Pairs whose maker is not sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from recsys.alignment.noise.filter import with_noise
from recsys.alignment.pairs import PreferencePairs


@dataclass(frozen=True, kw_only=True)
class ConfidenceFilter:
    """Drops what is doubtful, or keeps it with a soft label."""

    threshold: float = 0.6
    """Pairs whose `confidence` is lower are doubtful."""
    action: Literal["drop", "smooth"] = "drop"
    """`smooth`: their `label_noise_prob` becomes 1 - confidence, where it is not larger already."""

    def __call__(self, pairs: PreferencePairs, /) -> PreferencePairs:
        """See the class."""
        if self.action == "drop":
            return PreferencePairs(frame=pairs.frame.filter(pl.col("confidence") >= self.threshold))
        confidence, noise = (pairs.frame[name].to_numpy() for name in ("confidence", "label_noise_prob"))
        smoothed = np.where(confidence < self.threshold, np.maximum(noise, 1 - confidence), noise)
        return with_noise(pairs, smoothed)
