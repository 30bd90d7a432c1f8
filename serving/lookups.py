"""Ways to lists that no search for the next item makes: given items ranked, and items that words describe.

Items like an item need no way of their own: they are what dense retrieval lists after a history of that item alone.
Knows no order among them, no deadlines and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recsys.bundle import Bundle
from recsys.data.sequences import Sequences
from recsys.errors import ArtifactError, RecsysError
from recsys.generator import GenerativeRecommender
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import TowerSource
from serving.answers import SearchBy, Source
from serving.search import CatalogSearch
from serving.stages import (
    Asked,
    Listed,
    OneByOne,
    Stage,
    StageName,
    listed_row,
    one_thread,
    together,
    walk_down,
    word_reader,
)

FloatArray = npt.NDArray[np.float32]
TextVectors = Callable[[Sequence[str]], FloatArray]
"""float32 [B, D] in the space of the items' vectors, of B texts."""


@dataclass(frozen=True, eq=False)
class RankStage:
    """Given items by their exact log-probability as the next one: no search, so that no item is missed."""

    recommender: GenerativeRecommender
    name: StageName = field(default="rank", init=False)
    source: Source = field(default="generator", init=False)
    shares_calls: bool = field(default=False, init=False)
    is_exclusive: bool = field(default=False, init=False)

    def key(self, asked: Asked) -> Hashable:
        """See `Stage`."""
        return None

    def lists(self, asked: Sequence[Asked]) -> Sequence[Listed | None]:
        """See `Stage`; equal scores in the order of the catalogue."""
        one_thread()
        histories = Sequences.from_lists([one.history for one in asked])
        found = self.recommender.score(histories, [one.items for one in asked], sessions=[one.session for one in asked])
        orders = [np.lexsort((one.items, -scores)) for one, scores in zip(asked, found, strict=True)]
        return [
            Listed(items=one.items[order], scores=scores[order])
            for one, scores, order in zip(asked, found, orders, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class TextStage:
    """Items whose vectors are like that of the words."""

    vectors: TextVectors
    """Of one thread at a time."""
    index: ItemIndex
    """Over the unit vectors of all items."""
    name: StageName = field(default="search", init=False)
    source: Source = field(default="dense", init=False)
    shares_calls: bool = field(default=True, init=False)
    is_exclusive: bool = field(default=True, init=False)

    def key(self, asked: Asked) -> Hashable:
        """See `Stage`."""
        return asked.k, asked.caps_key, asked.allow_key

    def lists(self, asked: Sequence[Asked]) -> Sequence[Listed | None]:
        """See `Stage`."""
        one_thread()
        tower = _Encoded(self.vectors([one.words for one in asked]))
        num_items = len(self.index.rows)
        source = TowerSource(tower, num_items, num_items, self.index)
        nobody = Sequences.from_lists([one.history for one in asked])
        found = SourceRecommender(source, num_items).recommend(
            nobody, max(one.k for one in asked), constraints=together(asked, num_items)
        )
        return [listed_row(found, row, one.k) for row, one in enumerate(asked)]


@dataclass(frozen=True, eq=False)
class PromptStage(OneByOne):
    """Items that a language model generates after the words: its own search, where it was taught to."""

    reader: GenerativeRecommender
    within: npt.NDArray[np.bool_] | None = None
    """bool [num_items]: what it may list beside what a request allows; None: everything."""
    name: StageName = field(default="prompt", init=False)
    source: Source = field(default="generator", init=False)

    def _one(self, asked: Asked) -> Listed:
        held = together([asked], self.reader.trie.num_items).within(self.within)
        return listed_row(self.reader.search([asked.words], asked.k, constraints=held), 0, asked.k)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A reader whose queries are known, whatever the histories."""

    queries: FloatArray

    def encode(self, histories: Sequences) -> FloatArray:
        """See `Reader`."""
        return self.queries


@dataclass(frozen=True, eq=False)
class WordsStage:
    """Items in whose title, categories or id all the words occur; an empty list where there are none."""

    search: CatalogSearch
    name: StageName = field(default="words", init=False)
    source: Source = field(default="words", init=False)
    shares_calls: bool = field(default=False, init=False)
    is_exclusive: bool = field(default=False, init=False)

    def key(self, asked: Asked) -> Hashable:
        """See `Stage`."""
        return None

    def lists(self, asked: Sequence[Asked]) -> Sequence[Listed | None]:
        """See `Stage`; the score is minus the logarithm of the place among all that match."""
        return [self._one(one) for one in asked]

    def _one(self, asked: Asked) -> Listed:
        found = self.search.matches(asked.words)
        items, places = walk_down(found.best, len(found), asked)
        return Listed(items=items, scores=(0.0 - np.log(1 + places)).astype(np.float32))  # 0 for the first, not -0


def searches_of(bundle: Bundle, index: ItemIndex, search_by: SearchBy) -> Sequence[Stage]:
    """Ways of a bundle to find items by a text.

    Raises:
        ArtifactError: it has no such way.
    """
    name = bundle.manifest.name
    if search_by == "words":
        return ()
    if search_by == "generator":
        reader = word_reader(bundle.recommender)
        if reader is None:
            raise ArtifactError(f"bundle: the model of {name} knows no words; set search.by to words or text_encoder")
        return (PromptStage(reader),)

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return bundle.embeddings.match(bundle.text_encoder.encode_few(texts))

    try:
        encode(["a"])  # loads it
    except RecsysError as error:
        raise ArtifactError(f"bundle: the text encoder of {name} cannot be used: {error}") from error
    return (TextStage(encode, index),)
