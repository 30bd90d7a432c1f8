"""Settings of the filters of a run's pairs. Each says which pairs it can judge, and what else it needs to do so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.alignment.noise.answers import AnswerScores, pair_features, ranker
from recsys.alignment.noise.confidence import ConfidenceFilter
from recsys.alignment.noise.consistency import ConsistencyFilter
from recsys.alignment.noise.filter import PairFilter
from recsys.alignment.noise.flip_rate import FlipRateFilter
from recsys.alignment.noise.peer_review import PeerReviewConfig, PeerReviewFilter
from recsys.alignment.pairs import SOURCES, Source
from recsys.config import StrictConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class FilterInputs:
    """What a run has for its filters. Models are made when a filter first asks for them."""

    item_vectors: Callable[[], npt.NDArray[np.float32]]
    """float32 [N, D], of the items' content."""
    generator: Callable[[], AnswerScores]
    """The trained generator's log-probabilities."""
    counter: Callable[[], AnswerScores]
    """Another ranker that was fitted on the same training sequences."""
    seed: int
    """Of what is random."""


class ConfidenceFilterConfig(StrictConfig):
    """Drops or softens what its maker is not sure of."""

    kind: Literal["confidence"]
    """`confidence`"""
    threshold: float = Field(default=0.6, gt=0, le=1)
    """Pairs with a lower `confidence` are doubtful."""
    action: Literal["drop", "smooth"] = "drop"
    """`smooth`: their `label_noise_prob` becomes 1 - confidence, where it is not larger already."""

    reads: ClassVar[frozenset[Source]] = frozenset({"novelty"})
    """The sources whose pairs it can judge: those that say how sure they are."""

    @property
    def softens(self) -> bool:
        """Whether it gives pairs another `label_noise_prob`, which few losses read."""
        return self.action == "smooth"

    def build(self, inputs: FilterInputs) -> PairFilter:
        """Needs no inputs."""
        del inputs
        return ConfidenceFilter(threshold=self.threshold, action=self.action)


class PeerReviewFilterConfig(PeerReviewConfig):
    """Drops what two reward models, fitted on the pairs themselves, believe least."""

    kind: Literal["peer_review"]
    """`peer_review`"""

    reads: ClassVar[frozenset[Source]] = frozenset(SOURCES)
    """The sources whose pairs it can judge."""
    softens: ClassVar[bool] = False
    """See `ConfidenceFilterConfig`."""

    def build(self, inputs: FilterInputs) -> PairFilter:
        """Needs item vectors."""
        return PeerReviewFilter(features=pair_features(inputs.item_vectors()), config=self, seed=inputs.seed)


class ConsistencyFilterConfig(StrictConfig):
    """Soft labels: `label_noise_prob` becomes 1 - C, C how alike the generator and the skip-gram counter rank a pair's
    answers. For the losses `cream`, `cdpo` and `robust`."""

    kind: Literal["consistency"]
    """`consistency`"""
    average: Literal["all", "pair"] = "all"
    """`all`: C is the mean over the pairs; `pair`: each has its own, for pairs of several rejected answers."""

    reads: ClassVar[frozenset[Source]] = frozenset(SOURCES)
    """The sources whose pairs it can judge."""
    softens: ClassVar[bool] = True
    """See `ConfidenceFilterConfig`."""

    def build(self, inputs: FilterInputs) -> PairFilter:
        """Needs the generator and the counter."""
        return ConsistencyFilter(
            current=ranker(inputs.generator()), previous=ranker(inputs.counter()), average=self.average
        )


class FlipRateFilterConfig(StrictConfig):
    """Soft labels: `label_noise_prob` becomes the rate at which users contradict themselves. For the losses `robust`
    and `cdpo`."""

    kind: Literal["flip_rate"]
    """`flip_rate`"""
    min_decisions: int = Field(default=30, ge=1)
    """Fewer comparisons of two decisions say nothing, and stop the run."""

    reads: ClassVar[frozenset[Source]] = frozenset({"rating", "click_skip", "feedback"})
    """The sources whose pairs it can judge: what people decided, perhaps more than once."""
    softens: ClassVar[bool] = True
    """See `ConfidenceFilterConfig`."""

    def build(self, inputs: FilterInputs) -> PairFilter:
        """Needs no inputs."""
        del inputs
        return FlipRateFilter(min_decisions=self.min_decisions)


FilterConfig: TypeAlias = Annotated[
    ConfidenceFilterConfig | PeerReviewFilterConfig | ConsistencyFilterConfig | FlipRateFilterConfig,
    Field(discriminator="kind"),
]
"""A filter of a run. Routing is not among them: it needs routings that were tried and a labeller (see `RoutingFilter`).
"""
