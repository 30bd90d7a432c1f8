"""A little world whose users have known tastes: each likes one of four genres, and takes popular items sooner."""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys.data import Catalog, Interactions
from recsys.simulator.behaviour.model import ChoiceModel, ChoiceParameters
from recsys.simulator.behaviour.patience import Patience
from recsys.simulator.behaviour.succession import successions
from recsys.simulator.behaviour.vectors import ItemVectors, content_vectors, main_categories

NUM_ITEMS = 48
GENRES = ("drama", "comedy", "noir", "western")


def make_catalog() -> Catalog:
    index = range(NUM_ITEMS)
    return Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [f"i{i}" for i in index],
                "title": [f"{GENRES[i % 4]} number {i}" for i in index],
                "categories": [["films", GENRES[i % 4]] for i in index],
            }
        )
    )


def make_log(num_users: int = 120, seed: int = 0) -> Interactions:
    """Histories of 8 to 14 items, 85 % of the user's genre; a session ends after each item with probability 1/4."""
    random = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(num_users):
        weights = np.where(np.arange(NUM_ITEMS) % 4 == user % 4, 0.85, 0.05) / (1 + np.arange(NUM_ITEMS) // 4)
        taken = random.choice(NUM_ITEMS, size=random.integers(8, 15), replace=False, p=weights / weights.sum())
        pauses = np.where(random.random(len(taken)) < 0.25, 86_400, 60)
        users += [user] * len(taken)
        items += taken.tolist()
        times += np.cumsum(pauses).tolist()
    counts = np.bincount(users)
    frame = pl.DataFrame(
        {
            "user": np.array(users, dtype=np.int64),
            "item": np.array(items, dtype=np.int64),
            "event_type": ["view"] * len(users),
            "rating": pl.Series([None] * len(users), dtype=pl.Float64),
            "timestamp": np.array(times, dtype=np.int64),
            "position": np.concatenate([np.arange(count) for count in counts]).astype(np.int64),
        }
    )
    return Interactions(frame=frame, user_ids=[f"u{user}" for user in range(num_users)], num_items=NUM_ITEMS)


def make_model(**changes: object) -> ChoiceModel:
    """Made up, not fitted: content alone, with sizes that make choices neither rare nor certain."""
    parameters = ChoiceParameters(
        decays=(0.5, 0.9),
        taste={"content": ((0.5, 0.2, 0.0), (1.5, 0.5, 0.3))},
        succession=0.3,
        popularity=0.4,
        satiation=0.5,
        null=-1.0,
        position_bias=(0.0, -0.4, -0.7, -1.0),
        patience=Patience(base=(-1.5, -1.8), per_null=0.3, per_reward=0.5),
    )
    popularity = -np.log(1.0 + np.arange(NUM_ITEMS) // 4)
    return ChoiceModel(
        vectors=ItemVectors(blocks={"content": content_vectors(make_catalog(), 12)}),
        successions=successions(make_log().sequences(), NUM_ITEMS),
        log_popularity=(popularity - popularity.mean()).astype(np.float32),
        categories=main_categories(make_catalog()),
        constants=np.array([0.0, 0.3, -0.2, 0.1, 0.0], dtype=np.float32),
        parameters=parameters.model_copy(update=changes),
    )
