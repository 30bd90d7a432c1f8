"""`Rollouts`: what a policy proposed for a batch of histories, and what happened next. What every reward reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.data import Sequences


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollouts:
    """Groups of G proposals for each of B histories."""

    histories: Sequences
    """B histories, item indices, oldest first."""
    futures: Tensor
    """int64 [B, N]: the items that followed, the next one first; -1 where there are no more. N may be 0."""
    items: Tensor
    """int64 [B, G]: proposed items, the best of the policy first; -1 where fewer than G were legal."""
    scores: Tensor
    """float32 [B, G]: their log-probabilities under the policy that proposed them; -inf beside -1."""
    texts: Sequence[Sequence[str]] | None = None
    """B x G texts that led to the proposals, of policies that reason; None for those that do not."""

    @property
    def is_real(self) -> Tensor:
        """bool [B, G]: there is a proposal."""
        return self.items >= 0

    @property
    def hits(self) -> Tensor:
        """bool [B, G]: the proposal is the next item."""
        if self.futures.shape[1] == 0:
            return torch.zeros_like(self.is_real)
        return self.is_real & (self.items == self.futures[:, :1])

    def first(self, count: int) -> Rollouts:
        """The first `count` groups."""
        return Rollouts(
            histories=self.histories.select(np.arange(min(count, len(self.histories)))),
            futures=self.futures[:count],
            items=self.items[:count],
            scores=self.scores[:count],
            texts=None if self.texts is None else self.texts[:count],
        )
