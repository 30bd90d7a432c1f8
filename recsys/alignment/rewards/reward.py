"""What a reward is, and the check that every value of one passes. Knows no particular reward.

Shapes: B histories, G proposals each.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext
from recsys.alignment.rollouts import Rollouts
from recsys.config import StrictConfig
from recsys.errors import RewardError


class Reward(Protocol):
    """One number for each proposal."""

    @property
    def name(self) -> str:
        """Under which its values are logged and its errors reported."""

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G], on the device of the rollouts; 0 where there is no proposal."""


class TermConfig(StrictConfig):
    """What every reward's section holds beside its own settings."""

    kind: str
    """Which reward it is; each has its own literal."""
    name: str = ""
    """Under which the term is logged and weighted; its `kind` when empty. Two terms of one kind need names."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of the term in the sum."""
    transform: Literal["none", "log_sigmoid"] = "none"
    """`log_sigmoid`: what is far above the level of the reference policy counts little more (`combine`)."""

    @property
    def term_name(self) -> str:
        """`name`, or the kind."""
        return self.name or self.kind

    @abstractmethod
    def build(self, context: RewardContext) -> Reward:
        """The reward, reading from `context`. Raises ConfigError when something that it needs is missing there."""


def next_items(rollouts: Rollouts) -> Tensor:
    """int64 [B]: the item that followed each history, -1 where none is known."""
    if rollouts.futures.shape[1] == 0:
        return torch.full_like(rollouts.items[:, 0], -1)
    return rollouts.futures[:, 0]


def evaluate(reward: Reward, rollouts: Rollouts) -> Tensor:
    """float32 [B, G]: the reward's values, checked.

    Raises:
        RewardError: wrong shape or type, NaN or infinity; it names the reward.
    """
    values = reward(rollouts)
    if values.shape != rollouts.items.shape:
        raise RewardError(
            f"reward {reward.name!r}: returned shape {list(values.shape)} for proposals of shape "
            f"{list(rollouts.items.shape)}; return one number a proposal"
        )
    if values.dtype != torch.float32:
        raise RewardError(f"reward {reward.name!r}: returned {values.dtype}; return float32")
    broken = ~torch.isfinite(values)
    if bool(broken.any()):
        row, place = broken.nonzero()[0].tolist()
        raise RewardError(
            f"reward {reward.name!r}: {int(broken.sum())} of {values.numel()} values are NaN or infinite, e.g. "
            f"{values[row, place].item()} for history {row}, place {place}; check its inputs"
        )
    return values
