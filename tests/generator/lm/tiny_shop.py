"""A shop of six items and three users, written out by hand."""

from __future__ import annotations

import polars as pl

from recsys.data import Catalog, Sequences
from recsys.generator.lm.texts import Preferences, TextTable

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
