"""Users who are not like the log: for stress tests, made up and not fitted. They share the fitted model's machinery.

- `drifting`: their taste wanders at random with every step (a random walk, as in RecoGym, arXiv:1808.00720).
- `popularity_chaser`: no taste of their own, only what is popular.
- `skimmer`: looks at the first places and hardly at the rest.
- `adversarial`: takes from every slate, and what suits the history least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

FloatArray = npt.NDArray[np.float32]

Kind = Literal["ordinary", "drifting", "popularity_chaser", "skimmer", "adversarial"]
KINDS: tuple[Kind, ...] = ("ordinary", "drifting", "popularity_chaser", "skimmer", "adversarial")


@dataclass(frozen=True, kw_only=True, eq=False)
class Traits:
    """How each of B users departs from the model; the defaults of a kind are what `ordinary` users have."""

    taste: FloatArray
    """float32 [B]: factor of what comes from the history; 1. Below 0 turns taste round."""
    popularity: FloatArray
    """float32 [B]: added to the weight of popularity; 0."""
    place: FloatArray
    """float32 [B]: added to the log of the position bias at each further place; 0."""
    insatiable: npt.NDArray[np.bool_]
    """bool [B]: never chooses nothing; False."""
    drift: FloatArray
    """float32 [B]: length of the random step that the memories take each time, as a share of their own; 0."""

    @classmethod
    def of(cls, kinds: Sequence[Kind]) -> Self:
        """One kind a user."""
        names = np.array(kinds, dtype=object)

        def where(kind: Kind, value: float, otherwise: float) -> FloatArray:
            return np.where(names == kind, value, otherwise).astype(np.float32)

        taste = where("popularity_chaser", 0.0, 1.0) * where("adversarial", -1.0, 1.0)
        return cls(
            taste=taste,
            popularity=where("popularity_chaser", 1.0, 0.0),
            place=where("skimmer", -1.0, 0.0),
            insatiable=names == "adversarial",
            drift=where("drifting", 0.3, 0.0),
        )

    @classmethod
    def ordinary(cls, num_users: int) -> Self:
        """Users who are all as the model has them."""
        return cls.of(["ordinary"] * num_users)

    def select(self, rows: IntArray) -> Self:
        """The users at `rows`."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
