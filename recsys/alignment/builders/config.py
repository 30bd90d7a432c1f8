"""Settings of the pairs of a run: which sources, and how many of each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recsys.alignment.noise.config import FilterConfig
from recsys.alignment.pairs import OBJECTIVES, Objective, Source
from recsys.config import StrictConfig


class RatingPairsConfig(StrictConfig):
    """Items of one user with clearly different ratings. Needs ratings, and low ones too: see `data.min_rating`."""

    min_gap: float = Field(default=2.0, gt=0)
    """Rejected items are rated at least so much lower."""
    window: int = Field(default=20, ge=1)
    """Rejected items lie at most so many interactions from the chosen one."""
    max_rejected: int = Field(default=3, ge=1)
    """Rejected items a pair, the nearest ones."""
    max_pairs_per_user: int = Field(default=20, ge=1)
    """A random sample of the pairs of users who have more."""


class BeamPairsConfig(StrictConfig):
    """What users took against the trained generator's best wrong items."""

    max_cases: int = Field(default=20_000, ge=1)
    """Places of the training sequences, a random sample."""
    min_history: int = Field(default=3, ge=0)
    """Items before such a place at least."""
    num_rejected: int = Field(default=3, ge=1)
    """Rejected items a pair."""
    beams: int = Field(default=20, ge=1)
    """Width of the search."""


class PerturbedPairsConfig(StrictConfig):
    """A user's own history against a perturbed one, for the same next item."""

    max_cases: int = Field(default=20_000, ge=1)
    """Places of the training sequences, a random sample."""
    min_history: int = Field(default=3, ge=1)
    """Items before such a place at least."""
    kind: Literal["replace", "swap", "reverse"] = "replace"
    """A share of the items replaced by random ones, another case's history, or the order reversed."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Of items that `replace` replaces."""
    num_histories: int = Field(default=1, ge=1)
    """Perturbed histories a pair."""


class NoveltyPairsConfig(StrictConfig):
    """Of the trained generator's best items, the rarest against more popular ones; for `align.objectives`."""

    max_cases: int = Field(default=20_000, ge=1)
    """Places of the training sequences, a random sample."""
    min_history: int = Field(default=3, ge=0)
    """Items before such a place at least."""
    candidates: int = Field(default=10, ge=2)
    """How many of the generator's best items are good enough to be compared."""
    min_ratio: float = Field(default=2.0, gt=1)
    """Rejected items are at least so many times as popular as the chosen one."""
    max_rejected: int = Field(default=3, ge=1)
    """Rejected items a pair, the least popular first."""
    beams: int = Field(default=20, ge=1)
    """Width of the search."""


class ClickPairsConfig(StrictConfig):
    """Clicks against skips of one slate, from a log of slates (`slate_log.read_slates` says how the file looks)."""

    file: Path
    """Parquet or JSON lines, one row a slate."""
    graded: bool = False
    """A list a slate, buy over cart over click over skip, for `lipo` and `pro`, instead of a pair a click."""
    max_weight: float = Field(default=10.0, gt=0)
    """Bound of the weights 1 / P(the slot was looked at)."""


class PairsConfig(StrictConfig):
    """The sources of a run's preference pairs; null leaves one out."""

    beams: BeamPairsConfig | None = BeamPairsConfig()
    """Hard negatives from the trained generator."""
    ratings: RatingPairsConfig | None = None
    """Ratings, where the data have them."""
    perturbed: PerturbedPairsConfig | None = None
    """Perturbed histories."""
    clicks: ClickPairsConfig | None = None
    """Feedback on slates, where there is a log of them."""
    novelty: NoveltyPairsConfig | None = None
    """Rare items among good ones, the objective `novelty` of `align.objectives`; all others are about `accuracy`."""
    filters: tuple[FilterConfig, ...] = ()
    """What is done about wrong labels, in this order; each filter judges the pairs of the sources that it can judge."""

    @model_validator(mode="after")
    def _some_source(self) -> PairsConfig:
        if not self.sources:
            *most, last = _SOURCES
            raise ValueError(f"give at least one of {', '.join(most)} and {last}, or leave the section out")
        return self

    @model_validator(mode="after")
    def _filters_have_pairs_to_judge(self) -> PairsConfig:
        for number, config in enumerate(self.filters):
            if not config.reads & self.sources:
                able = [name for name, sources in _SOURCES.items() if config.reads & sources]
                raise ValueError(
                    f"filters[{number}]: {config.kind} judges pairs of {' or '.join(able)}, which this section does "
                    "not make; add one, or drop the filter"
                )
        return self

    @model_validator(mode="after")
    def _confidence_can_fail(self) -> PairsConfig:
        for number, config in enumerate(self.filters):
            if config.kind != "confidence" or self.novelty is None:
                continue
            # The judge of novelty is sigma(log ratio) sure of an order.
            least = self.novelty.min_ratio / (1 + self.novelty.min_ratio)
            if config.threshold <= least:
                raise ValueError(
                    f"filters[{number}]: no pair of novelty with min_ratio={self.novelty.min_ratio:g} has a confidence "
                    f"below {least:.3f}, so that threshold={config.threshold:g} changes nothing; raise it, or drop the "
                    "filter"
                )
        return self

    @property
    def sources(self) -> frozenset[Source]:
        """What the pairs are made from."""
        given = [sources for name, sources in _SOURCES.items() if getattr(self, name) is not None]
        return frozenset().union(*given)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the pairs are about."""
        about = {"novelty" if source == "novelty" else "accuracy" for source in self.sources}
        return tuple(name for name in OBJECTIVES if name in about)


_SOURCES: dict[str, frozenset[Source]] = {
    "beams": frozenset({"beam"}),
    "ratings": frozenset({"rating"}),
    "perturbed": frozenset({"perturbed_history"}),
    "clicks": frozenset({"click_skip", "feedback"}),
    "novelty": frozenset({"novelty"}),
}
"""What the pairs of each key are made from."""
