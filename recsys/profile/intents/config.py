"""Settings of interests, tags and explanations."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from recsys.config import StrictConfig, read_yaml
from recsys.errors import ConfigError
from recsys.generator.lm.config import ChatTeacherConfig


class TagConfig(StrictConfig):
    """Which tags are good ones."""

    keyphrases: int = Field(default=4, ge=1)
    """Phrases of an item that may become parts: those that stand out in its texts."""
    min_items: int = Field(default=3, ge=1)
    """Items that fit a tag at least; with fewer there is nothing to recommend."""
    max_share: float = Field(default=0.03, gt=0, le=1)
    """Share of all items that fit a tag at most; with more it says nothing."""
    few_items: int = Field(default=10, ge=1)
    """So many may fit in any case: of a small catalogue the share is next to nothing."""


class InterestConfig(StrictConfig):
    """How interests are read off a history."""

    half_life: float = Field(default=20.0, gt=0)
    """Events after which one counts half."""
    min_count: int = Field(default=2, ge=1)
    """Events that an interest in a brand, decade or phrase has at least; of a category one is enough."""
    interests: int = Field(default=8, ge=1)
    """Of a user, at most."""
    tags_per_interest: int = Field(default=6, ge=1)
    """At most; RecGPT writes about 50 a user in all."""
    evidence: int = Field(default=5, ge=1)
    """Events that an interest names at most, the newest."""


class TableConfig(StrictConfig):
    """Which explanations are written in advance."""

    max_users: int = Field(default=5_000, ge=1)
    """Histories that are mined for tags at most, spread evenly over all."""
    items_per_tag: int = Field(default=20, ge=1)
    """Best items of a tag."""
    max_texts: int = Field(default=50_000, ge=0)
    """Rows of the table at most; tags that more users have come first."""


class IntentConfig(StrictConfig):
    """All of it."""

    tags: TagConfig = TagConfig()
    interests: InterestConfig = InterestConfig()
    table: TableConfig = TableConfig()


class IntentBuildConfig(IntentConfig):
    """How a table is made."""

    chat: ChatTeacherConfig | None = None
    """A chat model that reads the interests and writes the texts: a request each. None: rules."""

    @classmethod
    def load(cls, path: Path) -> IntentBuildConfig:
        """The settings of a YAML file.

        Raises:
            ConfigError: the file cannot be read, or a value is unknown or impossible; all of them are named.
        """
        try:
            return cls.model_validate(read_yaml(path))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
            raise ConfigError(f"{path}: {wrong}") from error
