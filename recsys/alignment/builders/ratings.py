"""Ratings of one user against each other: an item against those rated clearly lower about the same time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.errors import DataError


def rating_pairs(
    log: pl.DataFrame,
    user_ids: Sequence[str],
    *,
    min_gap: float = 2.0,
    window: int = 20,
    max_rejected: int = 3,
    max_pairs_per_user: int = 20,
    max_history: int | None = None,
    seed: int = 0,
) -> PreferencePairs:
    """Pairs whose prompt is what the user had before any of the items compared: no rating is told by its history.

    Args:
        log: columns `user` and `item` (Int64 dense indices) and `rating` (Float64, null where unknown), each user's
            rows together, oldest first; of training only.
        user_ids: the source's ids of users, by dense index.
        min_gap: rejected items are rated at least so much lower than the chosen one; above 0.
        window: rejected items lie at most so many interactions from the chosen one, as tastes and scales drift.
        max_rejected: the nearest ones are taken.
        max_pairs_per_user: a random sample of a user's pairs, so that few users do not make all of them.
        max_history: prompts keep the most recent so many items; None: all.
        seed: of that sample.

    Raises:
        DataError: no row has a rating.
        ValueError: a gap that is not positive.
    """
    if min_gap <= 0:
        raise ValueError(f"min_gap must be positive, got {min_gap}: equal ratings say nothing")
    if log["rating"].null_count() == len(log):
        raise DataError(f"rating pairs: none of {len(log)} interactions has a rating; leave pairs.ratings out")
    random = np.random.default_rng(seed)
    rows: list[PreferencePair] = []
    for part in log.partition_by("user", maintain_order=True):
        user = user_ids[int(part["user"][0])]
        items = part["item"].to_numpy()
        ratings = part["rating"].to_numpy()
        pairs = []
        for place in range(len(items)):
            begin = max(0, place - window)
            near = np.arange(begin, min(len(items), place + window + 1))
            lower = near[(ratings[near] <= ratings[place] - min_gap) & (items[near] != items[place])]
            # Unrated rows are NaN, which is lower than nothing.
            lower = lower[np.argsort(np.abs(lower - place), kind="stable")]
            lower = lower[np.sort(np.unique(items[lower], return_index=True)[1])][:max_rejected]
            if len(lower):
                pairs.append((place, lower))
        if len(pairs) > max_pairs_per_user:
            kept = np.sort(random.choice(len(pairs), max_pairs_per_user, replace=False))
            pairs = [pairs[number] for number in kept]
        for place, lower in pairs:
            before = items[: min(place, int(lower.min()))]
            rows.append(
                PreferencePair(
                    pair_id=f"rating-{user}-{place}",
                    user_id=user,
                    source="rating",
                    created_by="ratings",
                    prompt_items=before[-max_history:].tolist() if max_history else before.tolist(),
                    chosen_item=int(items[place]),
                    rejected_items=items[lower].tolist(),
                    chosen_score=float(ratings[place]),
                    rejected_scores=ratings[lower].tolist(),
                )
            )
    return PreferencePairs.from_rows(rows)
