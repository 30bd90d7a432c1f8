"""The `rewards` section of a run's configuration: which terms, and how they become one number."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from recsys.alignment.rewards.diversity import DiversityConfig
from recsys.alignment.rewards.exact import ExactConfig
from recsys.alignment.rewards.future import FutureConfig
from recsys.alignment.rewards.learned import LearnedConfig
from recsys.alignment.rewards.novelty import NoveltyConfig
from recsys.alignment.rewards.path import PathConfig
from recsys.alignment.rewards.popularity_guard import PopularityGuardConfig
from recsys.alignment.rewards.prefix import PrefixConfig
from recsys.alignment.rewards.rank import RankConfig
from recsys.alignment.rewards.reference_text import ReferenceTextConfig
from recsys.alignment.rewards.relevance import RelevanceConfig
from recsys.alignment.rewards.rubric import RubricConfig
from recsys.alignment.rewards.scorer import ScorerConfig
from recsys.config import StrictConfig

RewardConfig = Annotated[
    ExactConfig
    | PrefixConfig
    | RankConfig
    | FutureConfig
    | PathConfig
    | RelevanceConfig
    | NoveltyConfig
    | DiversityConfig
    | PopularityGuardConfig
    | ScorerConfig
    | LearnedConfig
    | ReferenceTextConfig
    | RubricConfig,
    Field(discriminator="kind"),
]
"""One reward; the key `kind` says which."""


class RewardsConfig(StrictConfig):
    """Terms of the reward, each logged separately."""

    terms: tuple[RewardConfig, ...] = (PrefixConfig(), RankConfig(weight=0.3))
    """What is summed."""
    quantile: float = Field(default=0.85, gt=0, lt=1)
    """Of the reference policy's rewards for a history: the level that `log_sigmoid` terms are measured from."""

    @field_validator("terms")
    @classmethod
    def _names_are_unique(cls, terms: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        if not terms:
            raise ValueError("terms is empty; name at least one reward")
        names = [term.term_name for term in terms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two terms are called {repeated[0]!r}; give one of them another `name`")
        return terms
