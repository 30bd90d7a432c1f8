"""What a search answers with: ranked items, whether they are proven to be the best, and why a list is short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import Sequences
from recsys.generator.constraints import Constraints

Shortage: TypeAlias = Literal["nothing_permitted", "few_permitted", "small_catalogue", "caps"]
"""Why a list has fewer than k items: no item is permitted, or fewer than k of them are; the whole catalogue is smaller
than k; or caps let no further item in."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendations:
    """Ranked items of B requests, best first; ties are ordered by semantic ID."""

    items: npt.NDArray[np.int64]
    """int64 [B, k]: item indices; -1 once no permitted item is left."""
    scores: npt.NDArray[np.float32]
    """float32 [B, k]: log-probabilities under the model; -inf beside -1."""
    certified: npt.NDArray[np.bool_] | None = None
    """bool [B]: the list is proven to be what scoring every permitted item gives, in the decoder's own arithmetic; None
    where nobody looked. A list that is not certified may still be the same."""
    bound: npt.NDArray[np.float32] | None = None
    """float32 [B]: the most that an item which the search gave up can score; -inf when it gave up none."""
    short: Sequence[Shortage | None] | None = None
    """Of each request why its list has fewer than k items; None for a full one. None where nobody looked."""

    @property
    def certified_share(self) -> float | None:
        """Share of the lists that are certified; None where nobody looked or there are none."""
        return float(self.certified.mean()) if self.certified is not None and len(self.certified) else None


class Recommender(Protocol):
    """Whatever gives lists of items for histories: the generator, or a fusion of it with further sources."""

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        constraints: Constraints | None = None,
        sessions: Sequence[str | None] | None = None,
    ) -> Recommendations:
        """The k best items of each history with their log-probabilities.

        `sessions` names the session of each history, None for none.
        """


@runtime_checkable
class SearchesBeams(Protocol):
    """A recommender whose search can be narrower: quicker, and it may miss items."""

    @property
    def beams(self) -> int:
        """Width of its search; 1: it cannot be narrower."""

    def with_beams(self, beams: int) -> Recommender:
        """The same with a search of another width; this one stays as it is."""
