"""A learned reward model's judgement of the proposals, if the model says how sure it is and means it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys.alignment.reward_models.quality import check_calibrated
from recsys.alignment.rewards.context import LearnedReward, RewardContext
from recsys.alignment.rewards.proposals import within_group
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rollouts import Rollouts
from recsys.errors import ConfigError


class LearnedConfig(TermConfig):
    """A learned reward model's judgement of the proposals."""

    kind: Literal["learned"] = "learned"
    model: str
    """Its name among the context's reward models."""
    normalise: Literal["group", "none"] = "none"
    """`group`: mean 0 and deviation 1 over the proposals for a history."""
    most_ece: float = Field(default=0.05, gt=0)
    """Calibration error above which the model is refused."""
    allow_miscalibrated: bool = False
    """Take a model all the same whose error is larger, or was not measured."""

    def build(self, context: RewardContext) -> ModelReward:
        """Reads the model; ConfigError when it is not calibrated and that is not allowed."""
        if self.model not in context.reward_models:
            known = ", ".join(map(repr, context.reward_models)) or "none"
            raise ConfigError(f"rewards.{self.term_name}.model is {self.model!r}; this run has {known}")
        model = context.reward_models[self.model]
        warning = check_calibrated(model.quality, self.most_ece)
        if warning is not None and not self.allow_miscalibrated:
            raise ConfigError(
                f"rewards.{self.term_name}: {warning}; calibrate it on held-out pairs, or set allow_miscalibrated"
            )
        return ModelReward(model, self.normalise, self.term_name)


@dataclass(frozen=True)
class ModelReward:
    """See the module."""

    model: LearnedReward
    normalise: Literal["group", "none"] = "none"
    name: str = "learned"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]."""
        values = self.model(rollouts.histories, rollouts.items).to(rollouts.items.device)
        if self.normalise == "group":
            return within_group(values, rollouts.is_real)
        return torch.where(rollouts.is_real, values, 0.0)
