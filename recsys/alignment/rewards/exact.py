"""1 for the next item, 0 for any other: the rule of MiniOneRec (arXiv 2510.24431)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from recsys.alignment.rewards.context import RewardContext
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts


class ExactConfig(TermConfig):
    """1 for the next item, 0 for any other."""

    kind: Literal["exact"] = "exact"

    def build(self, context: RewardContext) -> ExactReward:
        """Needs nothing of the context."""
        return ExactReward(name=self.term_name)


@dataclass(frozen=True, kw_only=True)
class ExactReward:
    """See the module."""

    name: str = "exact"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]."""
        return rollouts.hits.float()
