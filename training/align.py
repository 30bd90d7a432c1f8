"""The section `align` of a run: how the trained generator is aligned. Parts are explained where they are defined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.alignment.rewards import RewardsConfig
from recsys.config import StrictConfig
from training.group_policy import GroupPolicyFitConfig
from training.preference_fit import PreferenceFitConfig


class PromptsConfig(StrictConfig):
    """The histories that the policy is asked about. All are of training."""

    labelled: int = Field(default=0, ge=0)
    """At most so many beginnings of training sequences, of which rewards know what followed."""
    min_history: int = Field(default=2, ge=1)
    """Items of the shortest labelled one."""
    current: bool = True
    """Every user's whole training history. What follows it is not known: only rewards without labels judge."""
    horizon: int = Field(default=5, ge=1)
    """Items that followed a labelled history which rewards see."""


class AlignConfig(StrictConfig):
    """How the trained generator is aligned with preferences or rewards."""

    method: Literal["group_policy", "preference"] = "group_policy"
    """`group_policy`: its own lists are judged by `rewards`. `preference`: pairs, of the stage `pairs`."""
    rewards: RewardsConfig = RewardsConfig()
    """What a proposal is worth, for `group_policy`."""
    prompts: PromptsConfig = PromptsConfig()
    """What is asked, for `group_policy`."""
    group_policy: GroupPolicyFitConfig = GroupPolicyFitConfig()
    """The loop of `group_policy`."""
    preference: PreferenceFitConfig = PreferenceFitConfig()
    """The loop of `preference`."""
    validation_users: int = Field(default=4000, ge=1)
    """At most so many validation cases are ranked (a fixed random sample)."""
    validation_beams: int = Field(default=20, ge=1)
    """Beams of the validation search; at least 50 are used for Recall@50."""
