"""What is asked of a model and what it answers: plain values. Knows no model and no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recsys.profile.profile import Profile

Mode = Literal["direct", "reason"]

Source = Literal["reasoning", "fusion", "generator", "dense", "counter", "popularity"]
"""Who made a list, best first: the generator with reasons first; the generator and further sources, ranked together;
the generator; dense retrieval (SASRec, or item embeddings where the bundle has none); items that followed those of the
history in the log; the most popular items."""

FallbackReason = Literal[
    "empty_history",
    "unknown_items",
    "reasoning_failed",
    "fusion_failed",
    "generator_failed",
    "dense_failed",
    "counter_failed",
    "no_time",
    "circuit_open",
    "store_unavailable",
]
"""Why a list is not of the best source: the history is empty, or the catalogue has none of its items; a source failed;
the deadline left no time for a better one; a source failed so often that it is left alone for a while; the store does
not answer, so that nothing is known of the user. It names what kept the last better source from answering."""

NOT_DEGRADED: frozenset[FallbackReason | None] = frozenset({None, "empty_history", "unknown_items"})
"""Reasons that lie in the request; all others lie in the service, and mean that it does less than it could."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request for a list."""

    history: Sequence[str]
    """Item ids, oldest first; unknown ones are left out."""
    k: int
    """Length of the list."""
    exclude: Sequence[str] = ()
    """Item ids that must not appear."""
    categories: Sequence[str] = ()
    """Only items with one of these; no filter when empty."""
    max_per_category: int | None = None
    """At most so many items of any category; an item counts in all of its own."""
    exclude_seen: bool = True
    """Leave out the items of the history."""
    session: str | None = None
    """Whose history it is; it then stays encoded, so that the next request reads only what is new."""
    mode: Mode = "direct"
    """`reason` writes reasons first, which takes seconds."""
    profile: Profile | None = None
    """What is said about the user; read before the history in mode `direct` if the model knows words."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why an item is in the list."""

    text: str
    because: int | None
    """The item of the history that is most like it; None without a history."""
    similarity: float | None
    """Cosine of the two items' embeddings."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One recommended item."""

    item: int
    score: float
    """Log-probability: of the generator, over its chains of reasons where there are any, the fusion's calibrated one,
    or the item's share of all interactions. Of `dense` and `counter` their own measure. Comparable within a list."""
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A ranked list and how it came about."""

    picks: list[Pick]
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
