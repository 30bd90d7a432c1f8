"""What a collaborative scorer thinks of the proposals: SASRec, a skip-gram counter, any callable.

One of the optional rewards of MiniOneRec (arXiv 2510.24431). Scorers differ in scale, so that by default only how the
proposals of one group compare counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext, Scorer
from recsys.alignment.rewards.proposals import within_group
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts
from recsys.errors import ConfigError, RewardError


class ScorerConfig(TermConfig):
    """A collaborative scorer's score of each proposal."""

    kind: Literal["scorer"] = "scorer"
    scorer: str
    """Its name among the context's scorers, for example `sasrec`."""
    normalise: Literal["group", "none"] = "group"
    """`group`: mean 0 and deviation 1 over the proposals for a history."""

    def build(self, context: RewardContext) -> ScorerReward:
        """Reads the scorer."""
        if self.scorer not in context.scorers:
            known = ", ".join(map(repr, context.scorers)) or "none"
            raise ConfigError(f"rewards.{self.term_name}.scorer is {self.scorer!r}; this run has {known}")
        return ScorerReward(context.scorers[self.scorer], self.normalise, self.term_name)


@dataclass(frozen=True)
class ScorerReward:
    """See the module. Takes one score of every item for each history: float32 [B, N]."""

    scorer: Scorer
    normalise: Literal["group", "none"] = "group"
    name: str = "scorer"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]. In a group an item that has no finite score counts as the lowest that has one."""
        table = torch.from_numpy(self.scorer(rollouts.histories)).to(rollouts.items.device)
        if len(table) != len(rollouts.items) or table.shape[1] <= int(rollouts.items.max()):
            raise RewardError(
                f"reward {self.name!r}: the scorer returned shape {list(table.shape)} for {len(rollouts.items)} "
                f"histories and items up to {int(rollouts.items.max())}; fit it on the whole catalogue"
            )
        values = table.gather(1, rollouts.items.clamp(min=0)).float()
        if self.normalise == "group":
            return within_group(values, rollouts.is_real)
        return torch.where(rollouts.is_real, values, 0.0)
