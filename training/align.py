"""The section `align` of a run: how the trained generator is aligned. Parts are explained where they are defined."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from recsys.alignment.pairs import Objective
from recsys.alignment.rewards import RewardsConfig
from recsys.config import StrictConfig
from training.group_policy import GroupPolicyFitConfig
from training.preference_fit import PreferenceFitConfig

_OF_LABELS = frozenset({"exact", "prefix", "rank", "future", "path"})


class PromptsConfig(StrictConfig):
    """The histories that the policy is asked about. All are of training."""

    labelled: int = Field(default=20000, ge=0)
    """At most so many beginnings of training sequences, of which rewards know what followed."""
    min_history: int = Field(default=2, ge=1)
    """Items of the shortest labelled one."""
    current: bool = True
    """Every user's whole training history. What follows it is not known: only rewards without labels judge."""
    horizon: int = Field(default=5, ge=1)
    """Items that followed a labelled history which rewards see."""


class ObjectivesConfig(StrictConfig):
    """A head an objective of the pairs, on one backbone (MAH-DPO). Nested generators only."""

    weights: dict[Objective, Annotated[float, Field(ge=0)]] | None = None
    """How much each objective counts when lists are made, of any sum; null: all the same. Those left out do not count.
    """
    tune: Literal["heads", "all"] = "heads"
    """`heads`: what they share stays as supervised training left it, so that no objective moves another one's lists;
    `all`: as in the paper, the backbone learns from every objective too."""
    noise: float = Field(default=1e-3, ge=0)
    """Standard deviation of what tells the heads from each other before they are tuned."""

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("weights: one must be above 0")
        return self


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
    objectives: ObjectivesConfig | None = None
    """A head an objective, for `preference`; null: one decoder learns from all pairs."""
    validation_users: int = Field(default=4000, ge=1)
    """At most so many validation cases are ranked (a fixed random sample)."""
    validation_beams: int = Field(default=50, ge=50)
    """Beams of the validation search, which Recall@50 is measured on too."""

    @model_validator(mode="after")
    def _rewards_see_what_they_need(self) -> Self:
        if self.objectives is not None and self.method != "preference":
            raise ValueError("objectives are those of pairs; set method: preference, or drop them")
        terms = self.rewards.terms
        if self.method == "group_policy" and not self.prompts.labelled and all(t.kind in _OF_LABELS for t in terms):
            raise ValueError(
                f"rewards {', '.join(repr(t.kind) for t in terms)} read what followed a history, which no prompt of "
                "prompts.labelled=0 knows; raise it, or add a reward without labels"
            )
        for term in terms:
            if term.kind == "future" and term.steps > self.prompts.horizon:
                raise ValueError(
                    f"rewards {term.term_name!r} looks {term.steps} steps ahead, "
                    f"prompts.horizon={self.prompts.horizon} shows fewer; raise the horizon"
                )
        return self
