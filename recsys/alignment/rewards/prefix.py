"""Credit for the leading codes that a proposal shares with the next item.

RSVR, the residual-sensitive verifiable reward of GREAM (arXiv 2510.20815): (LCP / H) ** exponent, LCP the longest
common prefix and H the levels that say something. 1 for the item itself; a little less for one that differs in the
code which only tells items apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext
from recsys.alignment.rewards.reward import TermConfig, next_items
from recsys.alignment.rollouts import Rollouts


class PrefixConfig(TermConfig):
    """Credit for the leading codes that a proposal shares with the next item."""

    kind: Literal["prefix"] = "prefix"
    exponent: float = Field(default=0.5, gt=0)
    """Below 1 the first shared codes earn most. With 4 levels 0.5 gives 0, .5, .707, .866, 1."""
    near_miss: float = Field(default=0.95, ge=0, le=1)
    """For another item whose codes differ only in the last, where that one just tells items apart."""

    def build(self, context: RewardContext) -> PrefixReward:
        """Reads the codes."""
        return PrefixReward(context, exponent=self.exponent, near_miss=self.near_miss, name=self.term_name)


def shared_levels(codes: Tensor, others: Tensor, *, ordered: bool) -> Tensor:
    """int64 [...]: length of the longest common prefix; of codes that are a set, how many are equal.

    Args:
        codes: int64 [..., H].
        others: int64 [..., H], broadcast against `codes`.
        ordered: the codes of an item are a path and no set.
    """
    equal = codes == others
    return (equal.long().cumprod(dim=-1) if ordered else equal.long()).sum(dim=-1)


@dataclass(frozen=True)
class PrefixReward:
    """See the module. Codes of parallel codebooks have no prefix: there all equal codes count."""

    context: RewardContext
    exponent: float = 0.5
    near_miss: float = 0.95
    name: str = "prefix"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G] in 0..1; 0 in rows whose next item is unknown."""
        targets = next_items(rollouts).unsqueeze(1)
        levels = self.context.semantic_levels
        codes = self.context.codes[:, :levels]
        # Index -1 reads the last item's codes; what came of it is masked below.
        shared = shared_levels(codes[rollouts.items], codes[targets], ordered=self.context.ordered)
        values = (shared / levels) ** self.exponent
        values = torch.where(shared == levels, self.near_miss, values)
        values = torch.where(rollouts.items == targets, 1.0, values)
        return torch.where(rollouts.is_real & (targets >= 0), values, 0.0).float()
