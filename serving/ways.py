"""The recommenders of a model, and the same ones over a catalogue with more items. Knows no requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from recsys.data.rows import Rows
from recsys.generator import GenerativeRecommender, Recommender
from recsys.retrieval import FusedRecommender
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import TowerSource
from serving.lookups import PromptStage, TextStage
from serving.stages import Stage

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ways:
    """Ways from a history to a list; `serving.runtime.RecommenderRuntime` says what each is for."""

    recommender: Recommender
    reader: Recommender | None
    fused: Recommender | None
    reasoner: GenerativeRecommender | None
    dense: Recommender | None
    counter: Recommender | None
    content: TowerSource | None
    searches: tuple[Stage, ...]

    def over(self, codes: Rows[np.int64], vectors: Rows, generatable: BoolArray | None, new_item_slots: int) -> Ways:
        """The same with further items, with no training; these stay as they are.

        Args:
            codes: [N', levels], of the items that there were, and then of the new ones.
            vectors: embeddings likewise.
            generatable: bool [N'], what a generator in a fusion or in a search may find; None: everything.
            new_item_slots: places for new items at the end of each list of a generator that is not part of a fusion:
                what a model never saw hardly ever wins against what it did, but for the other sources of a fusion.

        Raises:
            TypeError: a recommender of a kind that takes no items.
        """
        grown: dict[int, GenerativeRecommender] = {}

        def generator(one: Recommender) -> GenerativeRecommender:
            if not isinstance(one, GenerativeRecommender):
                raise TypeError(f"{type(one).__name__} takes no new items")
            if id(one) not in grown:
                slots = None if self.fused is not None else max(one.config.new_item_slots, new_item_slots)
                grown[id(one)] = one.with_items(codes, vectors, new_item_slots=slots)
            return grown[id(one)]

        def source(one: Recommender) -> SourceRecommender:
            if not isinstance(one, SourceRecommender):
                raise TypeError(f"{type(one).__name__} takes no new items")
            return one.with_items(vectors)

        content = None if self.content is None else self.content.with_items(vectors)

        def search(one: Stage) -> Stage:
            if isinstance(one, TextStage) and content is not None:
                return replace(one, index=content.index)
            if isinstance(one, PromptStage):
                return replace(one, reader=generator(one.reader), within=generatable)
            raise TypeError(f"{type(one).__name__} takes no new items")

        fused: FusedRecommender | None = None
        if self.fused is not None:
            if not isinstance(self.fused, FusedRecommender):
                raise TypeError(f"{type(self.fused).__name__} takes no new items")
            fused = self.fused.with_items(generator(self.recommender), vectors, generatable)
        return Ways(
            recommender=generator(self.recommender),
            reader=None if self.reader is None else generator(self.reader),
            fused=fused,
            reasoner=None if self.reasoner is None else generator(self.reasoner),
            dense=None if self.dense is None else source(self.dense),
            counter=None if self.counter is None else source(self.counter),
            content=content,
            searches=tuple(map(search, self.searches)),
        )
