"""Who teaches the recommender, who teaches the simulated users, and who is simulated: three groups without a user in
common.

A simulator that was fitted on the users whom the recommender learned from would reward it for what both have memorised.
A user's fold follows from a hash of the id alone, so that it is the same in every program and every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.data.sequences import IntArray
from recsys.errors import DataError
from recsys.simulator.experiment.assignment import bucket_of

RECOMMENDER, SIMULATOR, EVALUATION = "recommender", "simulator", "evaluation"
FOLDS = (RECOMMENDER, SIMULATOR, EVALUATION)

_FIRST_BUCKET = {RECOMMENDER: 0, SIMULATOR: 6_000, EVALUATION: 8_000}
_SALT = "folds of users"


@dataclass(frozen=True, kw_only=True, eq=False)
class UserFolds:
    """The three groups, as positions in the list of users that they were made from."""

    recommender: IntArray
    """int64: 60 % of the users; all that a recommender under test may be fitted on."""
    simulator: IntArray
    """int64: 20 %; choice models and reward models are fitted on them."""
    evaluation: IntArray
    """int64: 20 %; their histories are the population of simulated tests, and held-out figures are taken on them."""

    @classmethod
    def of(cls, user_ids: Sequence[str]) -> UserFolds:
        """Divide users by their ids.

        Raises:
            DataError: nobody is left to fit the simulator on, or to simulate. The recommender's may be elsewhere.
        """
        buckets = np.fromiter((bucket_of(_SALT, user_id) for user_id in user_ids), dtype=np.int64, count=len(user_ids))
        fold = np.searchsorted(list(_FIRST_BUCKET.values()), buckets, side="right") - 1
        groups = {name: np.flatnonzero(fold == index) for index, name in enumerate(FOLDS)}
        for name in (SIMULATOR, EVALUATION):
            if len(groups[name]) == 0:
                raise DataError(f"folds: none of {len(user_ids)} users falls into the {name} fold; give more users")
        return cls(**groups)
