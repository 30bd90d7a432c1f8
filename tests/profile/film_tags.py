"""A catalogue whose tags are known: 36 films of five kinds, and what comes back in their titles."""

from __future__ import annotations

import polars as pl

from recsys.data import Catalog
from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.build import SubjectReader
from recsys.profile.intents.config import TagConfig
from recsys.profile.intents.tags import PartReader, TagVocabulary

TITLES = [
    *(f"Star Harbor {number} (198{number})" for number in range(5)),
    *(f"Robots of Dawn {number} (199{number})" for number in range(5)),
    *("Tears (1991)", "Paris Waits (1992)", "The Letter (1993)", "Rain (1984)", "Spring (1985)"),
    *("Big Laugh (1996)", "Small Laugh (1997)", "Last Laugh (1998)", "Pie (1989)", "Cake (1988)"),
    *(f"Dust {number}" for number in range(16)),
]
CATEGORIES = [
    *([["Sci-Fi"]] * 3),
    *([["Sci-Fi", "Action"]] * 2),
    *([["Sci-Fi", "Action"]] * 5),
    *([["Romance"]] * 5),
    *([["Comedy"]] * 3),
    *([["Comedy", "Romance"]] * 2),
    *([["Western"]] * 16),
]
TAGS = [*([[]] * 5), *([["androids", "seen"]] * 3), *([["seen"]] * 7), *([[]] * 20), ["seen"]]
TAG_CONFIG = TagConfig(max_share=0.3, few_items=4)


def film_catalog() -> Catalog:
    """Items f0 .. f35."""
    return Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [f"f{number}" for number in range(len(TITLES))],
                "title": TITLES,
                "categories": CATEGORIES,
                "brand": ["Tall Films" if number % 3 == 0 else None for number in range(len(TITLES))],
                "tags": TAGS,
            },
            schema_overrides={"tags": pl.List(pl.String)},
        )
    )


class Films:
    """All that is read off a catalogue."""

    def __init__(self, catalog: Catalog | None = None) -> None:
        self.catalog = film_catalog() if catalog is None else catalog
        self.attributes = ItemAttributes(self.catalog)
        self.vocabulary = TagVocabulary.of(self.catalog, self.attributes, TAG_CONFIG)
        self.parts = PartReader(self.catalog, self.attributes, self.vocabulary.phrases)
        self.subjects = SubjectReader(self.attributes, self.parts)
