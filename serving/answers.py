"""What is asked of a model and what it answers: plain values. Knows no model and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.generator.filters import Node
from recsys.profile.profile import Profile

Mode = Literal["direct", "reason"]

Explain = Literal["none", "evidence", "intent"]
"""What is said of why an item is in a list: nothing; which items of the history are most like it; which tag of the
user's interests it fits, if any."""

Task = Literal["next", "similar", "rank", "search"]
"""What a list is of: what comes after the history; items like the last one of the history; given items, ranked as what
comes after the history; what words describe."""

SearchBy = Literal["words", "text_encoder", "generator"]
"""How a search finds items: by the words of titles, categories and ids; by the vectors that the bundle's text encoder
gives to texts; by what the language model generates after the text."""

Source = Literal["reasoning", "fusion", "generator", "dense", "words", "counter", "popularity"]
"""Who made a list, best first: the generator with reasons first; the generator and further sources, ranked together;
the generator; dense retrieval (SASRec, or item embeddings where the bundle has none, or is asked for similar items);
the words of titles and categories, for a search; items that followed those of the history in the log; the most popular
items."""

FallbackReason = Literal[
    "empty_history",
    "unknown_items",
    "reasoning_failed",
    "fusion_failed",
    "generator_failed",
    "dense_failed",
    "counter_failed",
    "words_failed",
    "fewer_beams",
    "no_time",
    "circuit_open",
    "store_unavailable",
]
"""Why a list is not of the best source: the history is empty, or the catalogue has none of its items; a source failed;
the deadline left the best source time for a narrower search only, or no time for a better one; a source failed so often
that it is left alone for a while; the store does not answer, so that nothing is known of the user. It names what kept
the last better source from answering."""

ItemStatus = Literal["generatable", "retrievable", "removed"]
"""What becomes of an item: it has a semantic ID, and every source may list it; it waits for one, is found by search and
listed by all sources but the generator; it is removed, and nobody lists it."""

NOT_DEGRADED: frozenset[FallbackReason | None] = frozenset({None, "empty_history", "unknown_items"})
"""Reasons that lie in the request; all others lie in the service, and mean that it does less than it could."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """An item with a fixed place."""

    item_id: str
    position: int
    """1 is the top."""


@dataclass(frozen=True, kw_only=True)
class Boost:
    """What is added to the scores of some items: of those that a filter permits, or of these."""

    weight: float
    """In nats, since scores are log-probabilities: 0.7 doubles an item's odds."""
    filter: Node | None = None
    item_ids: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request for a list."""

    history: Sequence[str]
    """Item ids, oldest first; unknown ones are left out. For `similar`, the one item."""
    task: Task = "next"
    items: Sequence[str] = ()
    """What `rank` ranks."""
    words: str = ""
    """What `search` looks for."""
    k: int
    """Length of the list."""
    exclude: Sequence[str] = ()
    """Item ids that must not appear."""
    categories: Sequence[str] = ()
    """Only items with one of these; no filter when empty."""
    filter: Node | None = None
    """Only items for which it holds; without names."""
    max_per_category: int | None = None
    """At most so many items of any category; an item counts in all of its own."""
    max_per: Mapping[str, int] = field(default_factory=dict)
    """By column: at most so many items of any one of its values; for categories, together with the above."""
    exclude_seen: bool = True
    """Leave out the items of the history."""
    seen_window: int | None = None
    """Leave out those of its last so many entries only."""
    pins: Sequence[Pin] = ()
    """Whatever the history is; they count in `max_per`, which may not move them."""
    boosts: Sequence[Boost] = ()
    diversity: float = 0.0
    """0 .. 1: how much more a list is worth whose items differ, see `serving.arranging`."""
    candidates: int = 0
    """Length of the list that boosts and diversity choose from, if above `k`."""
    drawn_from: int = 0
    """Length of the list that exploration draws from, if above `k`."""
    session: str | None = None
    """Whose history it is; it then stays encoded, so that the next request reads only what is new."""
    mode: Mode = "direct"
    """`reason` writes reasons first, which takes seconds."""
    objectives: Mapping[str, float] = field(default_factory=dict)
    """How much each objective of the generator counts; empty: as the model has it."""
    profile: Profile | None = None
    """What is said about the user; read before the history in mode `direct` if the model knows words."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why an item is in the list."""

    text: str
    evidence: Sequence[int] = ()
    """The items of the history that are most like it, best first; empty without a history, or for one that was
    pinned."""
    similarity: float | None = None
    """Cosine of its embedding and that of the first of them."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One recommended item."""

    item: int
    score: float
    """Log-probability: of the generator, over its chains of reasons where there are any, the fusion's calibrated one,
    or the item's share of all interactions. Of `dense` and `counter` their own measure, of `words` how well they match.
    With the item's boosts. Comparable within a list. NaN for an item that was pinned."""
    reason: Reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """What a source found, before boosts and diversity chose from it."""

    items: npt.NDArray[np.int64]
    """int64 [C], best first."""
    scores: npt.NDArray[np.float32]
    """float32 [C]."""


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """An item (dense index) with a fixed place."""

    item: int
    position: int
    """1 is the top."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A ranked list and how it came about."""

    picks: list[Pick]
    """Before it is shown (`serving.shown`) without the pinned items, and possibly longer than was asked for."""
    pins: tuple[Pinned, ...] = ()
    """What goes in between when it is shown."""
    dropped_pins: tuple[str, ...] = ()
    """Ids of pins that are in no list: the catalogue does not have them, or a rule forbids them."""
    source: Source
    fallback_reason: FallbackReason | None
    """Why the list is not of the best source that the bundle has, or of the mode; None when it is."""
    chains: tuple[str, ...]
    """The reasons that the list follows from; none unless its source is `reasoning`."""
    unknown_items: list[str]
    """Ids of the request that the catalogue does not have; they were ignored."""
    used_profile: bool
    """Whether the model read any statement of the profile before the history; never in mode `reason`."""
    timings_ms: dict[str, float]
    """Time of each step."""
    stage: str = "popularity"
    """What made the list: a stage of the model, or popularity."""
    candidates: Candidates | None = None
    """What it was chosen from; None where nothing was re-ordered."""
    certified: bool | None = None
    """Whether the search proved its list to be the exact one; None where it does not tell."""

    @property
    def items(self) -> list[int]:
        """Dense indices, best first."""
        return [pick.item for pick in self.picks]

    @property
    def is_degraded(self) -> bool:
        """Whether the service in good health would have given a better list."""
        return self.fallback_reason not in NOT_DEGRADED
