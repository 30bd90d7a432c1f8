"""A small world with a truth: users stay with a topic whose words look unrelated, among words that say nothing."""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys.data import Catalog, Sequences

NUM_TOPICS = 6
ITEMS_PER_TOPIC = 12
TOPIC_WORDS = [[f"{name}{topic}" for name in ("axe", "bow", "cup", "dye", "elm")] for topic in "pqrstu"]
NOISE_WORDS = ["big", "new", "pack", "set", "pro", "mini", "plus", "deluxe"]


def planted(seed: int, num_users: int = 120) -> tuple[Catalog, Sequences]:
    """Titles of two words of the item's topic and three of noise; each user buys five items of one topic."""
    rng = np.random.default_rng(seed)
    titles = [
        " ".join([*rng.choice(TOPIC_WORDS[topic], 2, replace=False), *rng.choice(NOISE_WORDS, 3, replace=False)])
        for topic in range(NUM_TOPICS)
        for _ in range(ITEMS_PER_TOPIC)
    ]
    frame = pl.DataFrame(
        {"item_id": [str(item) for item in range(len(titles))], "title": titles, "categories": [[]] * len(titles)},
        schema_overrides={"categories": pl.List(pl.String)},
    )
    topics = rng.integers(NUM_TOPICS, size=num_users)
    bought = [topic * ITEMS_PER_TOPIC + rng.choice(ITEMS_PER_TOPIC, 5, replace=False) for topic in topics]
    return Catalog(frame=frame), Sequences.from_lists(bought)
