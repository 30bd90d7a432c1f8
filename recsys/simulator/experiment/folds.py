"""Which users a recommender, a simulator and a test may see: no user is seen by two of them.

A simulator that was fitted on the users whom the recommender learned from, or on those whom it is tested on, measures
what both remember. Items are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import polars as pl

from recsys.data import Dataset, Interactions
from recsys.errors import DataError
from recsys.simulator.experiment.assignment import assign

Fold: TypeAlias = Literal["recommender", "simulator", "population"]

SHARES: Final[dict[str, int]] = {"recommender": 6000, "simulator": 2000, "population": 2000}
"""Buckets of each fold."""
_SALT = "folds"


def folds_of(user_ids: Sequence[str]) -> list[Fold]:
    """The fold of each user: always the same one, whatever data it comes with."""
    return [fold for fold in assign(user_ids, _SALT, SHARES) if fold is not None]  # type: ignore[misc]


def split_folds(dataset: Dataset) -> dict[Fold, Dataset]:
    """The data set of each fold: its users with all that they did, over the whole catalogue.

    Raises:
        DataError: a fold has no users.
    """
    users = pl.Series(folds_of(dataset.interactions.user_ids), dtype=pl.String)
    names: tuple[Fold, ...] = ("recommender", "simulator", "population")
    return {fold: _of_users(dataset, fold, users == fold) for fold in names}


def check_disjoint(**users: Sequence[str]) -> None:
    """Refuse sets of user ids that share any.

    Raises:
        DataError: two of them do; the message names both and some of the users.
    """
    names = list(users)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if shared := sorted(set(users[first]) & set(users[second])):
                raise DataError(
                    f"{first} and {second} share {len(shared)} users ({', '.join(shared[:3])}); "
                    "split the data with `recsys data folds` and use one fold for each"
                )


def _of_users(dataset: Dataset, fold: Fold, is_in: pl.Series) -> Dataset:
    kept = is_in.arg_true()
    if not len(kept):
        raise DataError(f"the fold {fold} of {dataset.name} has no users; {len(is_in)} users are too few to split")
    index = pl.DataFrame({"user": kept.cast(pl.Int64), "new": pl.int_range(len(kept), dtype=pl.Int64, eager=True)})
    frame = dataset.interactions.frame
    rows = frame.join(index, on="user", how="inner", maintain_order="left")
    interactions = Interactions(
        frame=rows.with_columns(user=pl.col("new")).select(frame.columns),
        user_ids=[dataset.interactions.user_ids[user] for user in kept.to_list()],
        num_items=dataset.interactions.num_items,
    )
    return Dataset(catalog=dataset.catalog, interactions=interactions, name=dataset.name, config=dataset.config)
