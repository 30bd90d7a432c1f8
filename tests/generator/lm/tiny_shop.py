"""A shop of six items and three users, written out by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl

from recsys.data import Catalog, Sequences
from recsys.generator.lm.texts import Preferences, TextTable
from recsys.tokenizer.user_config import UserIndexerConfig
from recsys.tokenizer.user_histories import HistoryIndexer

CATALOG = Catalog(
    frame=pl.DataFrame(
        {
            "item_id": ["p", "q", "r", "s", "t", "u"],
            "title": ["Red Pen", "Blue Ink", "Grey Pad", "Oak Desk", None, "Wax Seal"],
            "categories": [["Pens"], ["Ink"], ["Paper"], ["Desks"], [], ["Wax"]],
            "description": ["Writes red.", None, "Sixty sheets.", "Made of oak.", "A lamp.", None],
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
)
TRAIN = Sequences.from_lists([[0, 1, 2, 3], [4, 5], [2]], users=[10, 11, 12])
"""Places 0-3, 4-5 and 6. No user has two items alike."""
TEXTS = TextTable(
    {0: ["something to write with"], 3: ["a place to work", "furniture"], 5: ["to close letters"]},
    {10: Preferences(overall="Writes a lot.", short_term="Now stocks up.")},
)
"""Nothing is known of user 11's taste; item 2 is what nobody asks for."""


@cache
def name_users() -> HistoryIndexer:
    """Names users over the six items, in three codes of four."""
    config = UserIndexerConfig(levels=3, codebook_size=4, code_dim=4, hidden=(8,), warmup_steps=10, steps=20)
    rng = np.random.default_rng(0)
    histories = Sequences.from_lists([rng.permutation(6)[: rng.integers(1, 5)] for _ in range(40)])
    return HistoryIndexer.fit(config, rng.normal(size=(6, 8)).astype(np.float32), histories)[0]
