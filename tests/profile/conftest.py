"""The film shop as a catalogue."""

from __future__ import annotations

import polars as pl
import pytest
from film_shop import FILMS

from recsys.data import Catalog
from recsys.profile.attributes import ItemAttributes


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [f"f{number}" for number in range(len(FILMS))],
                "title": [title for title, _ in FILMS],
                "categories": [categories for _, categories in FILMS],
                "brand": ["Tall Films" if number % 2 else None for number in range(len(FILMS))],
            }
        )
    )


@pytest.fixture(scope="session")
def attributes(catalog: Catalog) -> ItemAttributes:
    return ItemAttributes(catalog)
