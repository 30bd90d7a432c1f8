"""Ways from a request to a list, each over one recommender. Knows no order among them, no deadlines and no store."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ConfigError
from recsys.generator import Constraints, GenerativeRecommender, Recommendations, Recommender, SearchesBeams
from recsys.generator.constraints import Cap
from recsys.generator.diversity import walk_one
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons
from recsys.profile.profile import Profile
from recsys.profile.prompt import fitting_text, profile_prompt
from recsys.retrieval import FusedRecommender
from recsys.retrieval.popularity import DEEPER
from serving.answers import FallbackReason, Pinned, Source
from serving.arranging import Arrangement

StageName = Literal[
    "reasoning",
    "profile",
    "fusion",
    "fusion_half",
    "fusion_quarter",
    "generator",
    "generator_half",
    "generator_quarter",
    "dense",
    "counter",
    "similar",
    "rank",
    "search",
    "prompt",
    "words",
]

FAILED: Mapping[StageName, FallbackReason | None] = {
    "reasoning": "reasoning_failed",
    "profile": None,
    "fusion": "fusion_failed",
    "fusion_half": "fusion_failed",
    "fusion_quarter": "fusion_failed",
    "generator": "generator_failed",
    "generator_half": "generator_failed",
    "generator_quarter": "generator_failed",
    "dense": "dense_failed",
    "counter": "counter_failed",
    "similar": "dense_failed",
    "rank": "generator_failed",
    "search": "dense_failed",
    "prompt": "generator_failed",
    "words": "words_failed",
}
"""What is said of a stage that failed. A list without the profile is of the same source."""

_ROW_FILTERS_UP_TO = 50_000
"""Items of a catalogue up to which each request of a call has a filter of its own: the decoder takes 9 bytes an item
and request for it."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Asked:
    """A request in the catalogue's numbers. It is not spelled out in tracebacks: logs hold no histories."""

    k: int
    history: IntArray
    """int64 [T]: the items that the catalogue has, oldest first."""
    denied: IntArray
    """int64 [D], without repeats: must not appear."""
    allow: npt.NDArray[np.bool_] | None = None
    """bool [num_items]; None allows all."""
    allow_key: Hashable = None
    """Names what `allow` allows: equal for equal filters."""
    caps: Sequence[Cap] = ()
    caps_key: Hashable = ()
    """Names what `caps` are."""
    items: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 [M]: what is to be ranked, without repeats; `allow` allows no others then."""
    words: str = ""
    """What is searched for."""
    arrangement: Arrangement | None = None
    """What is done to the list afterwards."""
    pins: tuple[Pinned, ...] = ()
    """Those that the list will have; `denied` holds them."""
    dropped_pins: tuple[str, ...] = ()
    objectives: tuple[tuple[str, float], ...] = ()
    """How much each objective of the generator counts, by name in order; empty: as the model has it."""
    session: str | None = None
    profile: Profile | None = None
    reason: ReasonConfig = field(default_factory=ReasonConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """What a stage answers to one request."""

    items: IntArray
    """int64 [n], best first."""
    scores: npt.NDArray[np.float32]
    """float32 [n]."""
    chains: tuple[str, ...] = ()
    used_profile: bool = False
    certified: bool | None = None
    """Whether it is proven to be what scoring every permitted item gives; None where nobody looked."""


class Stage(Protocol):
    """A way to lists. `lists` may be called from several threads at a time."""

    @property
    def name(self) -> StageName:
        """Unique among a model's stages."""

    @property
    def source(self) -> Source:
        """What answers call it."""

    @property
    def shares_calls(self) -> bool:
        """Whether a call with several requests is cheaper than as many calls."""

    @property
    def is_exclusive(self) -> bool:
        """Whether calls must come one at a time."""

    def key(self, asked: Asked) -> Hashable:
        """Requests with equal keys may share a call."""

    def lists(self, asked: Sequence[Asked]) -> Sequence[Listed | None]:
        """A list for each request; None where the stage has nothing to say to it."""


@dataclass(frozen=True, eq=False)
class RecommenderStage:
    """Any recommender."""

    name: StageName
    source: Source
    recommender: Recommender
    num_items: int
    shares_calls: bool = True
    is_exclusive: bool = False
    within: npt.NDArray[np.bool_] | None = None
    """bool [num_items]: what it may list beside what a request allows; None: everything."""

    def key(self, asked: Asked) -> Hashable:
        """Lists of different lengths share a call where the short one is the beginning of the long one."""
        nested = (
            self.recommender.nested_up_to
            if isinstance(self.recommender, GenerativeRecommender | FusedRecommender)
            else 1
        )
        length = None if asked.k <= nested and not asked.caps else asked.k
        filters = None if self.num_items <= _ROW_FILTERS_UP_TO else asked.allow_key
        return length, asked.caps_key, filters, asked.objectives

    def lists(self, asked: Sequence[Asked]) -> Sequence[Listed | None]:
        """See `Stage`."""
        one_thread()
        k = max(one.k for one in asked)
        if isinstance(self.recommender, GenerativeRecommender) and self.recommender.graphs and not asked[0].caps:
            # Of one length: each has graphs of its own.
            k = max(k, self.recommender.nested_up_to)
        found = _weighted(self.recommender, asked[0].objectives).recommend(
            Sequences.from_lists([one.history for one in asked]),
            k,
            constraints=together(asked, self.num_items).within(self.within),
            sessions=[one.session for one in asked] if any(one.session is not None for one in asked) else None,
        )
        return [listed_row(found, row, one.k) for row, one in enumerate(asked)]


def _weighted(recommender: Recommender, objectives: tuple[tuple[str, float], ...]) -> Recommender:
    """The recommender with its generator's objectives counted so; what has no generator stays as it is."""
    if objectives and isinstance(recommender, GenerativeRecommender | FusedRecommender):
        return recommender.weighted(dict(objectives))
    return recommender


_NARROWER: Mapping[StageName, Sequence[tuple[StageName, int]]] = {
    "fusion": (("fusion_half", 2), ("fusion_quarter", 4)),
    "generator": (("generator_half", 2), ("generator_quarter", 4)),
}


def narrower(stage: RecommenderStage) -> tuple[RecommenderStage, ...]:
    """The same source with half and a quarter of the beams, for when the time does not suffice for all of them."""
    recommender = stage.recommender
    if not isinstance(recommender, SearchesBeams):
        return ()
    return tuple(
        replace(stage, name=name, recommender=recommender.with_beams(recommender.beams // part))
        for name, part in _NARROWER[stage.name]
        if recommender.beams >= part
    )


@dataclass(frozen=True, eq=False)
class OneByOne(ABC):
    """What words take part in: a text tokenizer serves one thread at a time, and requests share nothing."""

    shares_calls: bool = field(default=False, init=False)
    is_exclusive: bool = field(default=True, init=False)

    def key(self, asked: Asked) -> Hashable:
        """See `Stage`."""
        return None

    def lists(self, asked: Sequence[Asked]) -> Sequence[Listed | None]:
        """See `Stage`."""
        one_thread()
        return [self._one(one) for one in asked]

    @abstractmethod
    def _one(self, asked: Asked) -> Listed | None: ...


@dataclass(frozen=True, eq=False)
class ReasoningStage(OneByOne):
    """Reasons first, then the list that follows from them: a core for seconds each."""

    recommender: GenerativeRecommender
    within: npt.NDArray[np.bool_] | None = None
    name: StageName = field(default="reasoning", init=False)
    source: Source = field(default="reasoning", init=False)

    def _one(self, asked: Asked) -> Listed:
        reasoned = recommend_with_reasons(
            self.recommender,
            Sequences.from_lists([asked.history]),
            asked.k,
            asked.reason,
            constraints=together([asked], self.recommender.trie.num_items).within(self.within),
        )
        return listed_row(reasoned.recommendations, 0, asked.k, chains=tuple(reasoned.chains[0]))


@dataclass(frozen=True, eq=False)
class ProfileStage(OneByOne):
    """The generator with the user's profile before the history; nothing where no statement of it fits before that."""

    reader: GenerativeRecommender
    within: npt.NDArray[np.bool_] | None = None
    name: StageName = field(default="profile", init=False)
    source: Source = field(default="generator", init=False)

    def _one(self, asked: Asked) -> Listed | None:
        language = ItemLanguage.of(self.reader.model)
        recent = asked.history[-self.reader.config.model.max_history :].tolist()
        text = "" if asked.profile is None else fitting_text(language, asked.profile, recent)
        if not text:
            return None
        prompt = profile_prompt(language, text, recent)
        held = together([asked], self.reader.trie.num_items).within(self.within)
        reader = self.reader.weighted(dict(asked.objectives)) if asked.objectives else self.reader
        found = reader.complete([prompt], asked.k, constraints=held, reserve_new=True)
        return listed_row(found, 0, asked.k, used_profile=True)


def word_reader(recommender: Recommender) -> GenerativeRecommender | None:
    """The generator, if its body is a language model."""
    if not isinstance(recommender, GenerativeRecommender):
        return None
    try:
        ItemLanguage.of(recommender.model)
    except ConfigError:
        return None
    return recommender


def together(asked: Sequence[Asked], num_items: int) -> Constraints:
    """The restrictions of requests with equal caps, as those of one call."""
    first = asked[0]
    allow: npt.NDArray[np.bool_] | None
    if all(one.allow_key == first.allow_key for one in asked):
        allow = first.allow
    else:
        everything = np.ones(num_items, dtype=bool)
        allow = np.stack([everything if one.allow is None else one.allow for one in asked])
    deny = [one.denied for one in asked] if any(len(one.denied) for one in asked) else None
    return Constraints(allow=allow, deny=deny, caps=first.caps)


def walk_down(best: Callable[[int], IntArray], count: int, asked: Asked) -> tuple[IntArray, IntArray]:
    """The list of a request out of an order of items, of which no more is looked at than the list needs.

    Args:
        best: int64 [n], the first n of the order; all where there are fewer.
        count: how many there are.
        asked: says what may stand in the list.

    Returns:
        int64 [at most k]: the items, and their places in the order.
    """
    depth = asked.k + len(asked.denied)
    while True:
        order = best(depth)
        permitted = ~np.isin(order, asked.denied)
        if asked.allow is not None:
            permitted &= asked.allow[order]
        items = walk_one(order[permitted], asked.caps, asked.k)
        if len(items) == asked.k or depth >= count:
            return items, np.flatnonzero(np.isin(order, items))
        depth *= DEEPER


def listed_row(
    found: Recommendations, row: int, k: int, *, chains: tuple[str, ...] = (), used_profile: bool = False
) -> Listed:
    """One list of a recommender's, of at most `k` items."""
    items, scores = found.items[row][:k], found.scores[row][:k]
    exists = items >= 0
    return Listed(
        items=items[exists],
        scores=scores[exists],
        chains=chains,
        used_profile=used_profile,
        certified=None if found.certified is None else bool(found.certified[row]),
    )


_thread = threading.local()


def one_thread() -> None:
    """The number of threads belongs to the calling thread; one request a core beats many cores a request."""
    if not getattr(_thread, "ready", False):
        torch.set_num_threads(1)
        _thread.ready = True
